"""Finds the spooled group with an idempotency key."""

import os
import stat
from pathlib import Path
from threading import Lock

from bonbon.pairs.group_records import Group
from bonbon.pairs.spool.segment import document, read_line

Place = tuple[Path, int, int]
"""A segment, and the offset and length in bytes of a line in it."""


class KeyedGroups:
    """An index of the segments in a directory, whichever process writes them. Thread-safe.

    Each lookup reads what was appended since the last one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = Lock()
        self._read: dict[Path, tuple[int, int]] = {}
        self._places: dict[str, Place] = {}

    def find(self, key: str) -> Group | None:
        """Returns the first waiting group with this key."""
        with self._lock:
            self._update()
            place = self._places.get(key)
        if place is None:
            return None
        path, start, length = place
        try:
            with path.open("rb") as file:
                file.seek(start)
                group = read_line(file.read(length)).group
        except OSError:
            return None  # it is in the database by now
        return group if group is not None and group.idempotency == key else None

    def _update(self) -> None:
        found = {path: status for path in sorted(self.directory.glob("*.groups")) if (status := _status(path))}
        for path, (inode, _) in list(self._read.items()):
            if path not in found or found[path].st_ino != inode:
                del self._read[path]
                self._places = {key: place for key, place in self._places.items() if place[0] != path}
        for path, status in found.items():
            inode, start = self._read.get(path, (status.st_ino, 0))
            if status.st_size > start:
                self._read[path] = (inode, self._read_from(path, start))

    def _read_from(self, path: Path, start: int) -> int:
        """Indexes the lines from `start` on and returns where the next line begins."""
        try:
            with path.open("rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    if isinstance(key := document(line).get("idempotency"), str):
                        self._places.setdefault(key, (path, start, len(line)))
                    start += len(line)
        except OSError:
            pass  # deleted or unreadable; the process that empties the spool reports it
        return start


def _status(path: Path) -> os.stat_result | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
