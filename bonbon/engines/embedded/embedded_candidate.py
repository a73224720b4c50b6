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
    """The candidates that can share a batch: those of a model instance, or of one adapter if it cannot mix adapters."""

    policy: "Policy"
    adapter: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A version in memory: the key of its adapter, and its lane, which has the model instance."""

    name: str
    adapter: str
    lane: Lane


@dataclass(slots=True, eq=False)
class Job:
    """A request that is being served. `events` is read on the event loop; `over` is set from any thread.

    `grammar`, in its state before the first token, constrains all candidates of the request.
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
        job: The job that the candidate belongs to.
        index: The candidate's index in the request.
        shared: The random generator of requests without a seed.
    """

    def __init__(self, job: Job, index: int, shared: Random) -> None:
        super().__init__(job.request, index, job.prompt, job.reader)
        self.job = job
        self.grammar = None if job.grammar is None else job.grammar.deep_copy()
        self.random = shared if self.sampling.seed is None else Random(f"{self.sampling.seed}/{index}")

    @property
    def complete(self) -> bool:
        """Returns whether the grammar allows no more tokens, and the model has no end token to say so."""
        return self.grammar is not None and self.grammar.is_stopped() and not self.job.reader.end_ids

    @property
    def running(self) -> bool:
        """Returns whether the candidate is to get more tokens."""
        return not (self.finished or self.job.over)
