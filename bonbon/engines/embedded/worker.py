"""The thread that owns the models of the embedded engine."""

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
"""The steps between two checks for waiting candidates; letting them join costs about as much as one step."""
TURN_STEPS = 16
"""The steps that a lane runs before another lane with work gets its turn."""

log = structlog.get_logger(__name__)


class Worker(threading.Thread):
    """Samples, and runs calls between two tokens, until it is closed.

    Args:
        outbox: Receives the deltas.
        max_rows: The maximum number of candidates that one lane samples concurrently; the others wait.
        threads: The number of CPU threads for torch; 0 keeps torch's default.
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
        """Runs `function` on this thread. Raises EngineError when the thread has ended."""
        future: Future[T] = Future()
        with self._changed:
            self._raise_end()
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def submit(self, job: Job, candidates: list[EmbeddedCandidate]) -> None:
        """Queues a job's candidates. Raises EngineError when the thread has ended."""
        with self._changed:
            self._raise_end()
            self._waiting.setdefault(job.loaded.lane, deque()).extend(candidates)
            self._changed.notify()

    def abort(self, job: Job) -> None:
        """Drops a job's candidates; running ones end within a step."""
        job.over = True
        self._drop()

    def forget(self, loaded: Loaded) -> None:
        """Fails the running requests of a version before it is unloaded. Must run on this thread."""
        with self._changed:
            jobs = [candidate.job for candidate in self._candidates() if candidate.job.loaded is loaded]
        self._outbox.fail(jobs, f"version {loaded.name} was unloaded while a request was using it")
        self._drop()

    def close(self) -> None:
        """Ends the thread after the current token."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def run(self) -> None:
        reason = "the engine has been stopped"
        try:
            if self._threads:
                torch.set_num_threads(self._threads)
            while not self._closing:
                self._turn()
        except BaseException as error:  # noqa: BLE001 - nothing above catches it; callers get it as EngineError
            reason = f"the engine's thread crashed: {type(error).__name__}: {error}"
            log.error("the engine's thread crashed", exception=format_traceback(error))
        finally:
            self._end(reason)

    def _turn(self) -> None:
        """Waits for work; then runs every call, and gives every lane with candidates a turn."""
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
                batch.run(lambda steps, running, lane=lane: self._should_pause(lane, steps, running))  # type: ignore[misc]
            if not batch.candidates:
                del self._batches[lane]

    def _next_call(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        # One at a time, so that calls behind one that ends the thread fail with the reason.
        with self._changed:
            return self._calls.popleft() if self._calls else None

    def _take(self, lane: Lane, limit: int) -> list[EmbeddedCandidate]:
        """Returns the next waiting candidates of a lane, at most `limit`."""
        with self._changed:
            waiting = self._waiting.get(lane, deque())
            taken = [waiting.popleft() for _ in range(min(limit, len(waiting)))]
            if not waiting:
                self._waiting.pop(lane, None)
        return taken

    def _should_pause(self, lane: Lane, steps: int, running: int) -> bool:
        """Returns whether the running batch must pause for something else."""
        if self._closing or self._calls:
            return True
        if steps >= JOIN_STEPS and lane in self._waiting and running < self._max_rows:
            return True
        return steps >= TURN_STEPS and len({**self._batches, **self._waiting}) > 1

    def _drop(self) -> None:
        """Removes the candidates of ended jobs from the queue."""
        with self._changed:
            for lane, candidates in list(self._waiting.items()):
                self._waiting[lane] = deque(candidate for candidate in candidates if candidate.running)
                if not self._waiting[lane]:
                    del self._waiting[lane]

    def _candidates(self) -> list[EmbeddedCandidate]:
        waiting = [candidate for candidates in self._waiting.values() for candidate in candidates]
        return waiting + [candidate for batch in self._batches.values() for candidate in batch.candidates]

    def _end(self, reason: str) -> None:
        with self._changed:
            self.ended = reason
            candidates, calls = self._candidates(), list(self._calls)
            self._waiting, self._batches = {}, {}
            self._calls.clear()
        self._outbox.fail((candidate.job for candidate in candidates), reason)
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
