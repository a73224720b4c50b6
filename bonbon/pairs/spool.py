"""Where groups wait, on disk, while the database does not take them."""

import fcntl
import json
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from threading import Lock
from zlib import crc32

import structlog

from bonbon.errors import StoreError
from bonbon.ids import time_ordered_id
from bonbon.pairs.records import Group
from bonbon.pairs.rows import group_document, group_of_document

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 4 * 2**20


class Segment:
    """A file of groups, locked: nobody else appends to it, reads it or deletes it."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self._file = path, file

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def groups(self) -> list[Group]:
        """What is in it, without a last line that was never written to its end."""
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        found = [_group(line) for line in lines[:-1]]
        if lost := found.count(None):
            log.error("a spool has damaged lines", file=str(self.path), lines=lost)
        return [group for group in found if group is not None]

    def replace(self, groups: Sequence[Group]) -> None:
        """Hold these groups instead. Raises OSError."""
        self._file.seek(0)
        self._file.truncate()
        self.write(b"".join(map(_line, groups)))

    def write(self, data: bytes) -> None:
        """Put it on disk behind what is there; when that fails, nothing of it stays. Raises OSError."""
        file, start, left = self._file.fileno(), self._file.tell(), memoryview(data)
        try:
            while left:  # a disk that fills takes the beginning, and fails at the next attempt
                left = left[self._file.write(left) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, start)
            raise

    def delete(self) -> None:
        """Raises OSError."""
        self.path.unlink()
        self._file.close()

    def close(self) -> None:
        """Let go of it; it stays."""
        self._file.close()


class Spool:
    """Appends are on disk when they return. Threads may call it.

    Several processes may share the directory: each appends to a segment of its own, which it holds locked, and takes
    those of processes that have ended.

    Args:
        directory: made when it is needed.
        most_bytes: above this, all segments together, nothing is taken.
    """

    def __init__(self, directory: Path, most_bytes: int) -> None:
        self.directory, self.most_bytes = directory, most_bytes
        self._lock = Lock()
        self._active: Segment | None = None
        self._keyed: dict[str, Group] = {}
        self._refused = False
        self.size = sum(path.stat().st_size for path in self._paths())

    @property
    def has_room(self) -> bool:
        """Whether it has taken all that it was given since something was last taken from it."""
        return not self._refused

    @property
    def empty(self) -> bool:
        return self.size == 0

    def append(self, groups: Sequence[Group]) -> None:
        """Raises StoreError when they do not fit or cannot be written; none of them is kept then."""
        data = b"".join(map(_line, groups))
        with self._lock:
            try:
                if self.size + len(data) > self.most_bytes:
                    raise StoreError(f"the spool {self.directory} is full")
                self._write(data)
            except (StoreError, OSError) as error:
                self._refused = True
                if isinstance(error, StoreError):
                    raise
                raise StoreError(f"the spool {self.directory} cannot be written: {error.strerror}") from error
            self._refused = False
            self.size += len(data)
            self._keyed |= {group.idempotency: group for group in groups if group.idempotency}

    def find(self, idempotency: str) -> Group | None:
        """The group with this idempotency key, if this process has spooled it."""
        return self._keyed.get(idempotency)

    def take(self) -> Segment | None:
        """The oldest segment that no other process holds, to be closed or deleted; None for none. Raises OSError."""
        with self._lock:
            for path in self._paths():
                if self._active is not None and self._active.path == path:
                    self._active.close()
                    self._active = None
                if (segment := _locked(path)) is not None:
                    return segment
            self.size = sum(path.stat().st_size for path in self._paths())
            self._refused = self._refused and self.size > 0
        return None

    def delete(self, segment: Segment, groups: Sequence[Group]) -> None:
        """`groups`, all that `segment` holds, are in the database. Raises OSError."""
        with self._lock:
            self.size -= segment.size
            self._refused = False
            segment.delete()
            for group in groups:
                self._keyed.pop(group.idempotency or "", None)

    def put_aside(self, group: Group) -> None:
        """Keep a group that the database refuses in the file `refused`. Raises OSError."""
        with (self.directory / "refused").open("ab") as file:
            file.write(_line(group))
            file.flush()
            os.fsync(file.fileno())

    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob("*.groups"))

    def _write(self, data: bytes) -> None:
        segment, self._active = self._active or self._new(), None
        try:
            segment.write(data)
        except OSError:
            segment.close()
            raise
        if segment.size < SEGMENT_BYTES:
            self._active = segment
        else:
            segment.close()

    def _new(self) -> Segment:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{time_ordered_id()}.groups"
        path.touch(mode=0o600, exist_ok=False)
        segment = _locked(path)
        assert segment is not None, "the name is new: nobody else can have it"
        entry = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(entry)  # without this a power cut may forget the file's name
        finally:
            os.close(entry)
        return segment


def _locked(path: Path) -> Segment | None:
    """The file, if it is still there and nobody holds it. A process that ends, however it ends, lets go."""
    try:
        file = FileIO(path, "r+")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    if os.fstat(file.fileno()).st_nlink == 0:
        file.close()
        return None
    file.seek(0, os.SEEK_END)
    return Segment(path, file)


def _line(group: Group) -> bytes:
    text = json.dumps(group_document(group)).encode()
    return b"%08x %s\n" % (crc32(text), text)


def _group(line: bytes) -> Group | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % crc32(text):
        return None
    return group_of_document(json.loads(text))
