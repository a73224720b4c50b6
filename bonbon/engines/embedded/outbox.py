"""Delivers events from the worker's thread to the event loop, once per step for the whole batch."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from bonbon.engines.embedded.embedded_candidate import Job
from bonbon.engines.engine import Delta
from bonbon.errors import BonbonError, EngineError, UserError

Event = Delta | BonbonError


class Outbox:
    """Collects events and delivers them to the queues of their jobs.

    Args:
        loop: The event loop on which the jobs are read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: list[tuple[Job, Event]] = []

    def put(self, job: Job, event: Event) -> None:
        self._events.append((job, event))

    def fail(self, jobs: Iterable[Job], reason: str | UserError) -> None:
        """Ends every job that is still running, with an EngineError or the given UserError, and flushes."""
        for job in jobs:
            if not job.over:
                job.over = True
                self.put(job, EngineError(reason) if isinstance(reason, str) else reason)
        self.flush()

    def flush(self) -> None:
        if self._events:
            with suppress(RuntimeError):  # The loop is closed, so nobody reads the events any more.
                self._loop.call_soon_threadsafe(_deliver, self._events)
        self._events = []


def _deliver(events: list[tuple[Job, Event]]) -> None:
    for job, event in events:
        job.events.put_nowait(event)
