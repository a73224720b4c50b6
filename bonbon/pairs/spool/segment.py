"""A file of the spool: a group on each line, with a checksum."""

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

from bonbon.pairs.group_records import Group
from bonbon.pairs.group_rows import group_document, group_of_document


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it is on disk, and the group in it. Where there is none, `fault` says why."""

    data: bytes
    group: Group | None = None
    fault: str = ""


class Segment:
    """A file of groups, locked: nobody else appends to it, replaces it or deletes it."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self._file = path, file
        self.torn = 0

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @property
    def has_its_name(self) -> bool:
        """Whether its path still leads to this file. A file that was deleted or moved takes writes all the same."""
        try:
            named = self.path.lstat()
        except OSError:
            return False
        return os.path.samestat(named, os.fstat(self._file.fileno()))

    def lines(self) -> list[Line]:
        """What is in it, but for a last line that was never written to its end: `torn` is how many bytes that has."""
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        self.torn = len(rest)
        return [read_line(data + b"\n") for data in lines]

    def write(self, data: bytes) -> None:
        """Put it on disk behind what is there; when that fails, nothing of it stays. Raises OSError."""
        file, start, left = self._file.fileno(), self._file.seek(0, os.SEEK_END), memoryview(data)
        try:
            while left:  # a disk that fills takes the beginning, and fails at the next attempt
                left = left[self._file.write(left) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, start)
            raise

    def keep(self, lines: Sequence[bytes]) -> None:
        """Hold only these lines, on disk when this returns; without any the file is deleted. Ends the lock.

        Raises OSError; then everything is as it was.
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
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Let go of it; it stays."""
        self._file.close()


def create_segment(path: Path) -> Segment:
    """A new, empty file. Raises OSError when there is one already."""
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "r+")
    fcntl.flock(file, fcntl.LOCK_EX)  # the name is new: nobody waits for it
    sync_directory(path.parent)  # without this a power cut may forget the file's name
    return Segment(path, file)


def lock_segment(path: Path) -> Segment | None:
    """The file, if it is still there and nobody holds it. A process that ends, however it ends, lets go.

    Raises:
        NotASegment: something else has that name.
        OSError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise NotASegment(f"{path.name} is no regular file")
        file = FileIO(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+")
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
    return Segment(path, file)


class NotASegment(Exception):
    """A symbolic link, a directory or the like."""


def read_segment(path: Path) -> list[Line]:
    """What is in a file now, whoever holds it; nothing when there is none or it cannot be read."""
    try:
        data = path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b""
    except OSError:
        return []
    return [read_line(line + b"\n") for line in data.split(b"\n")[:-1]]


def written(group: Group) -> bytes:
    """The group's line."""
    text = json.dumps(group_document(group)).encode()
    return b"%08x %s\n" % (crc32(text), text)


def read_line(data: bytes) -> Line:
    """The line that is made of these bytes, whatever they are."""
    checksum, _, text = data.removesuffix(b"\n").partition(b" ")
    if checksum != b"%08x" % crc32(text):
        return Line(data, fault="the line is damaged: its checksum is another one")
    try:
        return Line(data, group_of_document(json.loads(text)))
    except Exception as error:  # noqa: BLE001 - whatever another release has written must stop nothing
        return Line(data, fault=f"its group cannot be read ({type(error).__name__})")


def document(data: bytes) -> dict[str, Any]:
    """What a line says, although it may be no group; nothing when it is no JSON object."""
    try:
        found = json.loads(data.partition(b" ")[2])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def size_of(path: Path) -> int:
    """Bytes of what has this name; 0 when there is nothing any more."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def sync_directory(directory: Path) -> None:
    """Have the names in it on disk."""
    entry = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
