"""Tests of the spool: its groups are on disk, damaged lines are left out, and processes share it."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bonbon.errors import StoreError
from bonbon.pairs.group_records import Group
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.spool.segment import read_segment
from bonbon.pairs.spool.spool import SEGMENT_BYTES, Spool
from bonbon.prompt import Prompt
from bonbon.store.database import open_database
from tests.support.data.groups import scored_group
from tests.support.paths import ROOT

PLENTY = 2**30


def taken(spool: Spool) -> list[Group]:
    """Takes every group out of the spool; unreadable lines are set aside."""
    found: list[Group] = []
    for path in spool.paths():
        if (segment := spool.take(path)) is not None:
            lines = segment.lines()
            if bad := [(line.data, line.fault) for line in lines if line.group is None]:
                spool.set_aside.add(bad)
            spool.keep(segment, [])
            found += [line.group for line in lines if line.group is not None]
    spool.measure()
    return found


def test_groups_come_back_as_they_were(tmp_path: Path) -> None:
    groups = [
        scored_group(1, tenant="acme", idempotency="a" * 64),
        scored_group(2, prompt=Prompt(token_ids=(5, 6))),
        scored_group(3, prompt=Prompt(text="\ud800 line\nbreak\0"), degraded="the reward is away"),
    ]
    spool = Spool(tmp_path, PLENTY)
    spool.append(groups[:2])
    spool.append(groups[2:])
    assert spool.find("a" * 64) == groups[0]
    assert taken(spool) == groups
    assert (spool.empty, spool.find("a" * 64), list(tmp_path.glob("*.groups"))) == (True, None, [])


def test_another_process_finds_what_one_that_was_killed_has_left(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.support.data.groups import scored_group
from bonbon.pairs.spool.spool import Spool
Spool(Path({str(tmp_path)!r}), 2**30).append([scored_group(i, request_id=f"left {{i}}") for i in range(3)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    spool = Spool(tmp_path, PLENTY)
    assert not spool.empty
    assert [group.request_id for group in taken(spool)] == ["left 0", "left 1", "left 2"]


def test_a_segment_that_a_living_process_holds_is_left_to_it(tmp_path: Path) -> None:
    """Two spools in one directory behave like two processes, because locks belong to open files."""
    one, other = Spool(tmp_path, PLENTY), Spool(tmp_path, PLENTY)
    one.append([scored_group(1)])
    assert taken(other) == []
    other.append([scored_group(2)])
    assert len(taken(other)) == 1
    assert len(taken(one)) == 1


async def test_a_pair_log_that_stops_releases_the_segment_of_its_spool(tmp_path: Path) -> None:
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        spool, other = Spool(tmp_path / "spool", PLENTY), Spool(tmp_path / "spool", PLENTY)
        spool.append([scored_group(1)])
        await PairLog(database, spool).stop()
        assert len(taken(other)) == 1


def test_a_line_that_was_never_finished_is_left_out_and_a_damaged_one_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path, PLENTY)
    groups = [scored_group(number) for number in range(4)]
    spool.append(groups)
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"question", b"quEstion")
    path.write_bytes(b"".join(lines)[:-20])
    spool.close()
    assert taken(Spool(tmp_path, PLENTY)) == [groups[0], groups[2]]


def test_it_takes_no_more_than_it_may(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 5000)
    with pytest.raises(StoreError, match="is full"):  # noqa: PT012 - one of the appends is what fails
        for number in range(100):
            spool.append([scored_group(number)])
    kept = len(taken(spool))
    assert 1 <= kept < 10
    spool.append([scored_group(0)])  # there is space again
    spool.close()


def test_groups_are_on_disk_when_the_segment_was_deleted_or_the_directory_moved(tmp_path: Path) -> None:
    """A file without a name still accepts writes, which no process can find again."""
    directory, groups = tmp_path / "spool", [scored_group(number) for number in range(5)]
    spool = Spool(directory, PLENTY)
    spool.append(groups[:1])
    (segment,) = spool.paths()
    segment.unlink()
    spool.append(groups[1:2])
    assert [line.group for path in spool.paths() for line in read_segment(path)] == groups[1:2]
    directory.rename(tmp_path / "moved")
    spool.append(groups[2:3])
    spool.append(groups[3:4])
    assert [line.group for path in spool.paths() for line in read_segment(path)] == groups[2:4]
    shutil.rmtree(directory)
    spool.append(groups[4:])
    assert taken(spool) == groups[4:]


def test_segments_stay_small(tmp_path: Path) -> None:
    spool = Spool(tmp_path, PLENTY)
    for number in range(3):
        spool.append([scored_group(number, prompt=Prompt(text="x" * SEGMENT_BYTES))])
    assert len(list(tmp_path.iterdir())) == 3
    assert len(taken(spool)) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="making a filesystem takes root")
def test_a_full_disk_is_told_and_nothing_half_written_stays(tmp_path: Path) -> None:
    """The test uses a real filesystem of 256 kilobytes."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "spool", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no filesystem can be mounted here: {mounted.stderr.decode()}")
    try:
        spool, kept = Spool(tmp_path, PLENTY), 0
        with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC)):  # noqa: PT012 - one of them fails
            for number in range(1000):
                spool.append([scored_group(number, prompt=Prompt(text="x" * 10_000))])
                kept += 1
        assert kept > 5
        assert len(taken(spool)) == kept
        spool.append([scored_group(0)])
        assert len(taken(spool)) == 1
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
