"""The certain end of a process that has been told to stop."""

import os
import sys
import time
from collections.abc import Callable
from threading import Condition, Thread

import structlog

log = structlog.get_logger(__name__)

MARGIN = 15.0
"""Seconds beyond `service.drain_timeout` that a stop takes at most."""


class Backstop:
    """Ends the process when an orderly stop does not come to its end, whatever thread a disk or a driver holds up.

    Nothing is lost: what was answered is in the log or in the spool.

    `end` replaces what ends the process.
    """

    def __init__(self, end: Callable[[int], object] = os._exit) -> None:
        self._end = end
        self._changed = Condition()
        self._at: float | None = None

    def within(self, seconds: float) -> None:
        """End the process in so many seconds, unless it has ended by then; the earliest end of several calls counts."""
        with self._changed:
            begin, at = self._at is None, time.monotonic() + seconds
            self._at = at if self._at is None else min(self._at, at)
            self._changed.notify()
        if begin:
            # A thread that nobody waits for: the process may end without it.
            Thread(target=self._wait, name="backstop", daemon=True).start()

    def _wait(self) -> None:
        with self._changed:
            while self._at is not None and (left := self._at - time.monotonic()) > 0:
                self._changed.wait(left)
        log.error("the stop does not come to its end; the process ends without it. What was answered is on disk")
        sys.stderr.flush()
        self._end(1)
