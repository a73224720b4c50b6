"""Remembers stored answers for when the database is unavailable."""

import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.group_records import Group
from bonbon.pairs.spool.segment import read_line, written

MAX_BYTES = 32 * 2**20
SECONDS = 900.0
"""Clients wait ten minutes for an answer, and two for the next attempt."""


class RecentAnswers:
    """Groups with an idempotency key from the last 15 minutes, limited to 32 MiB. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._size = 0

    def add(self, groups: Sequence[Group]) -> None:
        """Remembers the groups that have a key."""
        for group in groups:
            if group.idempotency is None:
                continue
            line = zlib.compress(written(group), 1)
            with self._lock:
                self._forget(group.idempotency)
                self._kept[group.idempotency] = (time.monotonic(), line)
                self._size += len(line)
                while self._size > MAX_BYTES or self._too_old():
                    self._forget(next(iter(self._kept)))

    def find(self, key: str) -> Group | None:
        """Returns the group with this key."""
        with self._lock:
            while self._too_old():
                self._forget(next(iter(self._kept)))
            found = self._kept.get(key)
        return None if found is None else read_line(zlib.decompress(found[1])).group

    def erase(self, conditions: Conditions) -> None:
        """Forgets the groups that meet the conditions."""
        with self._lock:
            kept = list(self._kept.items())
        for key, (_, line) in kept:
            group = read_line(zlib.decompress(line)).group
            if group is not None and conditions.meet(group.time, group.user, group.request_id, group.tenant):
                with self._lock:
                    self._forget(key)

    def _too_old(self) -> bool:
        return bool(self._kept) and next(iter(self._kept.values()))[0] < time.monotonic() - SECONDS

    def _forget(self, key: str) -> None:
        if (known := self._kept.pop(key, None)) is not None:
            self._size -= len(known[1])
