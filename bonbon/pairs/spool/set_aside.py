"""Keeps lines that the database refused or that cannot be read, byte for byte, until an operator decides."""

import json
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bonbon.ids import time_ordered_id
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.group_rows import time_of
from bonbon.pairs.spool.segment import Line, NotASegment, create_segment, document, lock_segment, read_line, size_of
from bonbon.store.storable_text import clean_text

SUFFIX = ".lines"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a segment, or a whole file that is not a segment (`line` is None). `time` is when it was set aside."""

    time: datetime
    reason: str
    line: Line | None
    file: Path


class SetAside:
    """A directory of lines, each with the reason why it was set aside. Safe for several threads and processes.

    Every addition is a separate file, so that no process waits for another. `count` is the last result of `recount`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.count = 0
        self._seen: list[tuple[str, int]] | None = None

    def add(self, lines: Sequence[tuple[bytes, str]]) -> None:
        """Adds lines, each with its reason. Raises OSError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        _write(self.directory / f"{time_ordered_id()}{SUFFIX}", [_record(line, reason) for line, reason in lines])
        self.count += len(lines)

    def move(self, path: Path) -> None:
        """Moves a file that is not a segment here, unchanged. Raises OSError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path.rename(self.directory / f"{time_ordered_id()}{path.suffix}")
        self.count += 1

    def adopt(self, file: Path) -> None:
        """Adopts the lines of a file, if it exists. Raises OSError."""
        try:
            segment = lock_segment(file)
        except NotASegment:
            self.move(file)
            return
        if segment is None:
            return  # it does not exist, or another process is adopting it
        try:
            self.add([(line, "the database refused it") for line in file.read_bytes().splitlines(keepends=True)])
            segment.keep([])
        finally:
            segment.close()

    def recount(self) -> int:
        """Returns the number of entries, counted again when the files have changed."""
        seen = [(path.name, size_of(path)) for path in self._paths()]
        if seen != self._seen:
            self._seen, self.count = seen, sum(1 for _ in self.entries())
        return self.count

    def reasons(self) -> Counter[str]:
        """Returns the number of entries per reason."""
        return Counter(entry.reason for entry in self.entries())

    def entries(self) -> Iterator[Entry]:
        """Yields all entries, oldest first. Raises OSError."""
        for path in self._paths():
            yield from self.read(path)

    def files(self) -> list[Path]:
        """Returns the files of lines, oldest first."""
        return [path for path in self._paths() if path.suffix == SUFFIX and path.is_file() and not path.is_symlink()]

    def read(self, path: Path) -> list[Entry]:
        """Returns the entries of one file, or none when another process has removed it. Raises OSError."""
        try:
            status = path.lstat()
            if path.suffix != SUFFIX or not stat.S_ISREG(status.st_mode):
                return [Entry(datetime.fromtimestamp(status.st_mtime, UTC), "it is not a regular file", None, path)]
            changed = datetime.fromtimestamp(status.st_mtime, UTC)
            return [_entry(record, path, changed) for record in path.read_bytes().splitlines()]
        except FileNotFoundError:
            return []

    def replace(self, path: Path, entries: Sequence[Entry]) -> None:
        """Reduces a file to these entries, or deletes it when there are none. Raises OSError."""
        if entries:
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            _write(new, [_record(e.line.data, e.reason, e.time) for e in entries if e.line is not None])
            new.replace(path)
        else:
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Deletes everything. Raises OSError."""
        for path in self._paths():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.recount()

    def matching(self, conditions: Conditions) -> int:
        """Returns how many entries `erase` would delete now. Raises OSError."""
        return sum(_meets(entry, conditions) for path in self.files() for entry in self.read(path))

    def erase(self, conditions: Conditions) -> int:
        """Deletes groups that meet the conditions, including damaged ones, and returns how many.

        An unreadable line does not reveal its user and is matched by its age alone. Raises OSError.
        """
        erased = 0
        for path in self.files():
            entries = self.read(path)
            left = [entry for entry in entries if not _meets(entry, conditions)]
            if len(left) < len(entries):
                self.replace(path, left)
                erased += len(entries) - len(left)
        return erased

    def _paths(self) -> list[Path]:
        found = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(path for path in found if path.suffix != ".new")


def set_aside_in(spool_dir: Path) -> SetAside:
    """Returns what the spool in this directory has set aside."""
    return SetAside(spool_dir / "set-aside")


def _write(path: Path, records: Sequence[dict[str, str]]) -> None:
    segment = create_segment(path)
    try:
        segment.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
    finally:
        segment.close()


def _entry(record: bytes, path: Path, changed: datetime) -> Entry:
    try:
        said = json.loads(record)
        line = said["line"].encode("latin-1")
        return Entry(time_of(said), clean_text(said["reason"]), read_line(line), path)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Entry(changed, "its recorded reason is damaged", Line(record, fault="it is damaged"), path)


def _record(line: bytes, reason: str, time: datetime | None = None) -> dict[str, str]:
    # Latin-1 maps every byte to a character, so the line is kept exactly and its readable parts stay readable.
    time = time or datetime.now(UTC)
    return {"time": time.isoformat(), "reason": reason, "line": line.decode("latin-1")}


def _meets(entry: Entry, conditions: Conditions) -> bool:
    assert entry.line is not None, "only files of lines are passed here"
    said = document(entry.line.data)
    try:
        time = time_of(said)
    except (KeyError, TypeError, ValueError):
        time = entry.time
    return conditions.meet(time, said.get("end_user"), said.get("request_id"), said.get("tenant"))
