"""A file of the spool, with one checksummed group per line."""

import fcntl
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from zlib import crc32

from bonbon.files.fsync import fsync
from bonbon.pairs.group_records import Group
from bonbon.pairs.group_rows import group_document, group_of_document


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it is on disk, with its group. When there is no group, `fault` is the reason."""

    data: bytes
    group: Group | None = None
    fault: str = ""


class Segment:
    """A locked file of groups: no other process appends to it, replaces it or deletes it."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self._file = path, file
        self.torn = 0

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @property
    def has_its_name(self) -> bool:
        """Whether its path still leads to this file. A deleted or moved file still accepts writes."""
        try:
            named = self.path.lstat()
        except OSError:
            return False
        return os.path.samestat(named, os.fstat(self._file.fileno()))

    def lines(self) -> list[Line]:
        """Returns its lines, without an incomplete last line, whose length in bytes is stored in `torn`."""
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        self.torn = len(rest)
        return [read_line(data + b"\n") for data in lines]

    def write(self, data: bytes) -> None:
        """Appends the data and flushes it to disk. On failure, nothing of it stays. Raises OSError."""
        file, start, left = self._file.fileno(), self._file.seek(0, os.SEEK_END), memoryview(data)
        try:
            while left:  # a disk that fills up accepts the beginning and fails at the next attempt
                left = left[self._file.write(left) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, start)
            raise

    def keep(self, lines: Sequence[bytes]) -> None:
        """Reduces the file to these lines, on disk on return, or deletes it when there are none. Releases the lock.

        Raises OSError, and then leaves everything as it was.
        """
        if lines:
            new = self.path.with_suffix(".new")
            new.unlink(missing_ok=True)
            segment = create_segment(new)
            try:
                segment.write(b"".join(lines))
                new.replace(self.path)
            finally:
                segment.close()
                new.unlink(missing_ok=True)
        else:
            self.path.unlink()
        self.close()
        fsync(self.path.parent)

    def close(self) -> None:
        """Releases the file, which stays on disk."""
        self._file.close()


def create_segment(path: Path) -> Segment:
    """Creates an empty file. Raises OSError when it exists."""
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # the name is new, so nobody holds the lock
        fsync(path.parent)  # without this, a power cut may lose the file's name
    except OSError:
        file.close()
        raise
    return Segment(path, file)


def lock_segment(path: Path) -> Segment | None:
    """Locks and returns the file if it still exists and is not locked. The lock ends with the process.

    Raises:
        NotASegment: The path is not a regular file.
        OSError: The file cannot be read.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise NotASegment(f"{path.name} is not a regular file")
        file = FileIO(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        file.close()
        raise
    if os.fstat(file.fileno()).st_nlink == 0:
        file.close()
        return None
    return Segment(path, file)


class NotASegment(Exception):
    """Raised for a symbolic link, a directory or another path that is not a regular file."""


def read_segment(path: Path) -> list[Line]:
    """Returns the lines of a file now, locked or not; none when it does not exist or cannot be read."""
    try:
        data = path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b""
    except OSError:
        return []
    return [read_line(line + b"\n") for line in data.split(b"\n")[:-1]]


def written(group: Group) -> bytes:
    """Returns the group's line."""
    text = json.dumps(group_document(group)).encode()
    return b"%08x %s\n" % (crc32(text), text)


def read_line(data: bytes) -> Line:
    """Returns the line that consists of these bytes, valid or not."""
    checksum, _, text = data.removesuffix(b"\n").partition(b" ")
    if checksum != b"%08x" % crc32(text):
        return Line(data, fault="the line is damaged: its checksum does not match")
    try:
        return Line(data, group_of_document(json.loads(text)))
    except Exception as error:  # noqa: BLE001 - whatever another release has written must stop nothing
        return Line(data, fault=f"its group cannot be read ({type(error).__name__})")


def document(data: bytes) -> dict[str, Any]:
    """Returns the JSON object in a line, which may not be a group, or an empty dictionary."""
    try:
        found = json.loads(data.partition(b" ")[2])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def size_of(path: Path) -> int:
    """Returns the size of a file in bytes; 0 when it does not exist."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0
