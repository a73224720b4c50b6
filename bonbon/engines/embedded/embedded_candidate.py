"""One candidate of the embedded engine, and the job it belongs to."""

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from bonbon.engines.candidate_stream import CandidateStream
from bonbon.engines.engine import Delta, DrawRequest
from bonbon.errors import BonbonError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from bonbon.engines.embedded.policy import Policy
    from bonbon.engines.text.prompt_reader import PromptReader


@dataclass(frozen=True, slots=True)
class Lane:
    """What may be drawn in one batch: all that a model instance draws or, where it cannot mix them, one adapter."""

    policy: "Policy"
    adapter: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A version as it lies in memory: the key of its adapter, and the lane, which has the model instance."""

    name: str
    adapter: str
    lane: Lane


@dataclass(slots=True, eq=False)
class Job:
    """A request that is being served. `events` is read on the event loop; `over` is set from any thread.

    `grammar`, before its first token, is what all of its candidates are held to.
    """

    request: DrawRequest
    loaded: Loaded
    prompt: tuple[int, ...]
    reader: "PromptReader"
    grammar: "LLMatcher | None" = None
    events: asyncio.Queue[Delta | BonbonError] = field(default_factory=asyncio.Queue)
    over: bool = False


class EmbeddedCandidate(CandidateStream):
    """One candidate of a job.

    Args:
        job: whose candidate it is.
        index: which candidate.
        shared: the generator of requests without a seed.
    """

    def __init__(self, job: Job, index: int, shared: Random) -> None:
        super().__init__(job.request, index, job.prompt, job.reader)
        self.job = job
        self.grammar = None if job.grammar is None else job.grammar.deep_copy()
        self.random = shared if self.sampling.seed is None else Random(f"{self.sampling.seed}/{index}")

    @property
    def complete(self) -> bool:
        """Whether nothing may follow by the row's grammar, and the model has no token that says so."""
        return self.grammar is not None and self.grammar.is_stopped() and not self.job.reader.end_ids

    @property
    def running(self) -> bool:
        """Whether the candidate is to get more tokens."""
        return not (self.finished or self.job.over)
