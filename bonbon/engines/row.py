"""One candidate while it is drawn, and the job it belongs to."""

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from bonbon.engines.base import Delta, DrawRequest, FinishReason, TokenAlternative
from bonbon.engines.transcript import Detokenizer, Transcript
from bonbon.errors import EngineError

if TYPE_CHECKING:
    from bonbon.engines.policy import Policy


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A version as it lies in memory: a model instance, and the key of the adapter on it."""

    name: str
    policy: "Policy"
    adapter: str


@dataclass(slots=True, eq=False)
class Job:
    """A request that is being served. `events` is read on the event loop; `over` is set from any thread."""

    request: DrawRequest
    loaded: Loaded
    prompt: tuple[int, ...]
    detokenizer: Detokenizer
    events: asyncio.Queue[Delta | EngineError] = field(default_factory=asyncio.Queue)
    over: bool = False


class Row:
    """One candidate of a job.

    Args:
        job: whose candidate it is.
        index: which candidate.
        shared: the generator of requests without a seed.
    """

    def __init__(self, job: Job, index: int, shared: Random) -> None:
        self.job, self.index, self.sampling = job, index, job.request.sampling
        self.random = shared if self.sampling.seed is None else Random(f"{self.sampling.seed}/{index}")
        self.finished = False
        self._detokenizer = job.detokenizer
        self._transcript = Transcript(job.detokenizer, self.sampling.stop)
        self._reads = job.request.deltas or bool(self.sampling.stop)
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._alternatives: list[tuple[list[int], list[float]]] = []
        self._sent = 0

    @property
    def running(self) -> bool:
        """Whether the candidate is to get more tokens."""
        return not (self.finished or self.job.over)

    @property
    def left(self) -> int:
        """How many tokens the candidate may still get."""
        return self.sampling.max_tokens - len(self._token_ids)

    def add(self, token: int, logprob: float, top: tuple[list[int], list[float]], *, end: bool) -> Delta | None:
        """Append a token (`end`: the end-of-sequence token) and return what is to be sent now."""
        self._token_ids.append(token)
        self._logprobs.append(logprob)
        self._alternatives.append(top)
        transcript = self._transcript
        if self._reads and not end:
            transcript.read(self._token_ids)
        finish: FinishReason | None = "stop" if end or transcript.stopped else "length" if self.left == 0 else None
        if finish:
            self.finished = True
            transcript.close(self._token_ids[:-1] if end else self._token_ids)
            finish = "stop" if transcript.stopped else finish
        return self._delta(finish) if finish or self.job.request.deltas else None

    def _delta(self, finish: FinishReason | None) -> Delta:
        new = range(self._sent, len(self._token_ids))
        before = [self._token_ids[at - 1] if at else None for at in new]
        wanted = self.sampling.top_logprobs
        delta = Delta(
            self.index,
            self._transcript.release(final=finish is not None),
            tuple(self._token_ids[self._sent :]),
            tuple(self._logprobs[self._sent :]),
            tuple(self._detokenizer.token(self._token_ids[at], last) for at, last in zip(new, before, strict=True)),
            tuple(self._likeliest(at, last) for at, last in zip(new, before, strict=True)) if wanted else (),
            finish,
        )
        self._sent = len(self._token_ids)
        return delta

    def _likeliest(self, at: int, before: int | None) -> tuple[TokenAlternative, ...]:
        ids, logprobs = self._alternatives[at]
        pairs = zip(ids[: self.sampling.top_logprobs], logprobs, strict=False)
        return tuple(TokenAlternative(i, self._detokenizer.token(i, before), logprob) for i, logprob in pairs)
