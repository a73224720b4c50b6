"""Ends the process when shutting down takes longer than its deadline."""

import os
import sys
import time
from collections.abc import Callable
from threading import Condition, Thread

import structlog

from bonbon.observability.output_relay import drain_relay

log = structlog.get_logger(__name__)

MARGIN = 15.0
"""Maximum duration of a shutdown beyond `service.drain_timeout`, in seconds."""


class Backstop:
    """Ends the process if an orderly shutdown does not finish in time, for example because a thread waits for a disk.

    No data is lost, because every answer is already in the log or in the spool.

    Args:
        end: Ends the process; tests replace it.
    """

    def __init__(self, end: Callable[[int], object] = os._exit) -> None:
        self._end = end
        self._changed = Condition()
        self._at: float | None = None

    def within(self, seconds: float) -> None:
        """Ends the process after `seconds` unless it has ended before. After several calls, the earliest deadline
        applies."""
        with self._changed:
            begin, at = self._at is None, time.monotonic() + seconds
            self._at = at if self._at is None else min(self._at, at)
            self._changed.notify()
        if begin:
            # A daemon thread does not keep the process alive.
            Thread(target=self._wait, name="backstop", daemon=True).start()

    def _wait(self) -> None:
        with self._changed:
            while self._at is not None and (left := self._at - time.monotonic()) > 0:
                self._changed.wait(left)
        log.error("shutdown exceeded its deadline; ending the process. Every answer is in the log or the spool")
        # Where this is the first process of a container, its end kills the relay of the output.
        drain_relay()
        sys.stderr.flush()
        self._end(1)
