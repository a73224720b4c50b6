"""The spool: holds groups on disk while the database does not accept them."""

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import structlog

from bonbon.errors import StoreError, UserError
from bonbon.ids import time_ordered_id
from bonbon.pairs.group_records import Group
from bonbon.pairs.spool.keyed_groups import KeyedGroups
from bonbon.pairs.spool.segment import NotASegment, Segment, create_segment, lock_segment, size_of, written
from bonbon.pairs.spool.set_aside import set_aside_in

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 4 * 2**20
ATTEMPTS = 3
"""Attempts to write when the file is deleted meanwhile."""


class Spool:
    """Appends groups to files; they are on disk on return. Thread-safe.

    Several processes may share the directory. Each appends to its own segment, which it holds locked, and adopts those
    of processes that have ended.

    Args:
        directory: Created when it is needed.
        max_bytes: The total size of all segments above which nothing is accepted.

    Raises:
        UserError: The path exists and is not a directory.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        if os.path.lexists(directory) and not directory.is_dir():
            raise UserError(
                f"the spool {directory} is not a directory: move it away, or name another data_dir", param="data_dir"
            )
        self.directory, self.max_bytes = directory, max_bytes
        self.set_aside = set_aside_in(directory)
        self._lock = Lock()
        self._active: Segment | None = None
        self._keyed = KeyedGroups(directory)
        self._refused = False
        self._skipped: set[Path] = set()
        self.size = 0
        self.set_aside.adopt(directory / "refused")  # the location in earlier releases
        self.measure()

    @property
    def accepts_groups(self) -> bool:
        """Whether every append succeeded since the spool was last emptied in part."""
        return not self._refused

    @property
    def empty(self) -> bool:
        return self.size == 0

    def append(self, groups: Sequence[Group]) -> None:
        """Appends all groups or none. Raises StoreError when they do not fit or cannot be written."""
        data = b"".join(map(written, groups))
        with self._lock:
            try:
                if self.size + len(data) > self.max_bytes:
                    raise StoreError(f"the spool {self.directory} is full")
                self._write(data)
            except (StoreError, OSError) as error:
                self._refused = True
                if isinstance(error, StoreError):
                    raise
                raise StoreError(f"the spool {self.directory} cannot be written: {error.strerror}") from error
            self._refused = False
            self.size += len(data)

    def find(self, idempotency: str) -> Group | None:
        """Returns the waiting group with this idempotency key, whichever process appended it."""
        return self._keyed.find(idempotency)

    def paths(self) -> list[Path]:
        """Returns the segments, oldest first."""
        return sorted(self.directory.glob("*.groups"))

    def take(self, path: Path) -> Segment | None:
        """Locks and returns a segment, to be released by `keep` or `close`. None when another process has locked or
        deleted it.

        A path that is not a segment is set aside. A file that cannot be opened stays and is reported once.
        """
        with self._lock:
            if self._active is not None and self._active.path == path:
                self._active.close()
                self._active = None
            try:
                return lock_segment(path)
            except NotASegment as error:
                self._move(path, str(error))
            except OSError as error:
                self._skip(path, error)
        return None

    def keep(self, segment: Segment, lines: Sequence[bytes]) -> None:
        """Reduces a segment to these lines; the others are in the database or set aside. Raises OSError."""
        with self._lock:
            segment.keep(lines)
            self._refused = False

    def close(self) -> None:
        """Releases the segment that is being written, so that another process may adopt it."""
        with self._lock:
            if self._active is not None:
                self._active.close()
                self._active = None

    def measure(self) -> None:
        """Measures how much is waiting and set aside, because other processes add and remove groups, too."""
        with self._lock:
            self.size = sum(map(size_of, self.paths()))
            self._refused = self._refused and self.size > 0
        self.set_aside.recount()

    def _move(self, path: Path, reason: str) -> None:
        try:
            self.set_aside.move(path)
        except OSError as error:
            self._skip(path, error)
        else:
            log.error("an entry of the spool directory is not a file of groups; it is set aside", reason=reason)

    def _skip(self, path: Path, error: OSError) -> None:
        if path not in self._skipped:
            log.error("a spool file cannot be opened; it stays there", file=str(path), reason=str(error))
        self._skipped.add(path)

    def _write(self, data: bytes) -> None:
        for _ in range(ATTEMPTS):
            segment, self._active = self._active or self._new(), None
            try:
                segment.write(data)
            except OSError:
                segment.close()
                raise
            found = segment.has_its_name
            if found and segment.size < SEGMENT_BYTES:
                self._active = segment
            else:
                segment.close()
            if found:
                return
            log.error("the open spool file was deleted or moved; starting a new one", file=str(segment.path))
        raise StoreError(f"the files of the spool {self.directory} were deleted while they were being written")

    def _new(self) -> Segment:
        self.directory.mkdir(parents=True, exist_ok=True)
        return create_segment(self.directory / f"{time_ordered_id()}.groups")
