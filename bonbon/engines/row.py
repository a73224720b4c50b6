"""One candidate of the embedded engine, and the job it belongs to."""

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from bonbon.engines.base import Delta, DrawRequest
from bonbon.engines.drawn import Drawn
from bonbon.engines.transcript import Detokenizer
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


class Row(Drawn):
    """One candidate of a job.

    Args:
        job: whose candidate it is.
        index: which candidate.
        shared: the generator of requests without a seed.
    """

    def __init__(self, job: Job, index: int, shared: Random) -> None:
        super().__init__(job.request, index, job.detokenizer)
        self.job = job
        self.random = shared if self.sampling.seed is None else Random(f"{self.sampling.seed}/{index}")

    @property
    def running(self) -> bool:
        """Whether the candidate is to get more tokens."""
        return not (self.finished or self.job.over)
