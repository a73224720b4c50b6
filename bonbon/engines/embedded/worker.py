"""The one thread that owns the models."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog
import torch

from bonbon.engines.embedded.embedded_candidate import EmbeddedCandidate, Job, Lane, Loaded
from bonbon.engines.embedded.micro_batch import MicroBatch
from bonbon.engines.embedded.outbox import Outbox
from bonbon.errors import EngineError
from bonbon.observability.tracebacks import format_traceback

T = TypeVar("T")

JOIN_STEPS = 4
"""Steps between two looks at the waiting draws: letting them join costs about as much as a step."""
TURN_STEPS = 16
"""Steps a lane has before another one with work gets its turn."""

log = structlog.get_logger(__name__)


class Worker(threading.Thread):
    """Draws, and runs calls between two tokens, until it is closed.

    Args:
        outbox: takes what is drawn.
        max_rows: most candidates that one lane draws at once; the others wait.
        threads: CPU threads for torch; 0 leaves torch's own choice.
    """

    def __init__(self, outbox: Outbox, *, max_rows: int, threads: int) -> None:
        super().__init__(name="bonbon-engine", daemon=True)
        self.ended: str | None = None
        self._outbox, self._max_rows, self._threads = outbox, max_rows, threads
        self._changed = threading.Condition()
        self._closing = False
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._waiting: dict[Lane, deque[EmbeddedCandidate]] = {}
        self._batches: dict[Lane, MicroBatch] = {}

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run `function` on this thread. Raises EngineError when the thread has ended."""
        future: Future[T] = Future()
        with self._changed:
            self._raise_end()
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def submit(self, job: Job, rows: list[EmbeddedCandidate]) -> None:
        """Queue a job's rows. Raises EngineError when the thread has ended."""
        with self._changed:
            self._raise_end()
            self._waiting.setdefault(job.loaded.lane, deque()).extend(rows)
            self._changed.notify()

    def abort(self, job: Job) -> None:
        """Drop a job's rows; those that run end within a step."""
        job.over = True
        self._drop()

    def forget(self, loaded: Loaded) -> None:
        """Fail what a version still draws, before it is unloaded. To be run on this thread."""
        with self._changed:
            jobs = [row.job for row in self._rows() if row.job.loaded is loaded]
        self._outbox.fail(jobs, f"version {loaded.name} was unloaded while it drew")
        self._drop()

    def close(self) -> None:
        """End the thread after the token it is at."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def run(self) -> None:
        reason = "the engine is stopped"
        try:
            if self._threads:
                torch.set_num_threads(self._threads)
            while not self._closing:
                self._turn()
        except BaseException as error:  # noqa: BLE001 - there is nobody above: whoever uses the engine is told
            reason = f"the engine's thread died: {type(error).__name__}: {error}"
            log.error("the engine's thread died", exception=format_traceback(error))
        finally:
            self._end(reason)

    def _turn(self) -> None:
        """Wait for work; then run every call, and give every lane with rows a turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._calls or self._waiting or self._batches)
        while call := self._next_call():
            _resolve(*call)
        with self._changed:
            lanes = list({**self._batches, **self._waiting})
        for lane in lanes:
            batch = self._batches.setdefault(lane, MicroBatch(lane.policy, self._outbox))
            with torch.inference_mode():
                batch.join(self._take(lane, self._max_rows - batch.running))
                batch.run(lambda steps, running, lane=lane: self._due(lane, steps, running))  # type: ignore[misc]
            if not batch.rows:
                del self._batches[lane]

    def _next_call(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        # One at a time: those behind a call that ends the thread are told so.
        with self._changed:
            return self._calls.popleft() if self._calls else None

    def _take(self, lane: Lane, room: int) -> list[EmbeddedCandidate]:
        """The next waiting rows of a lane, at most `room`."""
        with self._changed:
            waiting = self._waiting.get(lane, deque())
            taken = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            if not waiting:
                self._waiting.pop(lane, None)
        return taken

    def _due(self, lane: Lane, steps: int, running: int) -> bool:
        """Whether the batch that runs must pause for something else."""
        if self._closing or self._calls:
            return True
        if steps >= JOIN_STEPS and lane in self._waiting and running < self._max_rows:
            return True
        return steps >= TURN_STEPS and len({**self._batches, **self._waiting}) > 1

    def _drop(self) -> None:
        """Take the rows of jobs that are over out of the queue."""
        with self._changed:
            for lane, rows in list(self._waiting.items()):
                self._waiting[lane] = deque(row for row in rows if row.running)
                if not self._waiting[lane]:
                    del self._waiting[lane]

    def _rows(self) -> list[EmbeddedCandidate]:
        waiting = [row for rows in self._waiting.values() for row in rows]
        return waiting + [row for batch in self._batches.values() for row in batch.rows]

    def _end(self, reason: str) -> None:
        with self._changed:
            self.ended = reason
            rows, calls = self._rows(), list(self._calls)
            self._waiting, self._batches = {}, {}
            self._calls.clear()
        self._outbox.fail((row.job for row in rows), reason)
        for future, _ in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineError(reason))

    def _raise_end(self) -> None:
        if self.ended:
            raise EngineError(self.ended)


def _resolve(future: "Future[T]", function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
        if not isinstance(error, Exception):
            raise
