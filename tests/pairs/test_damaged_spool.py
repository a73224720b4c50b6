"""Tests of a spool with unreadable contents: the service starts, stores the rest and loses no byte."""

import errno
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx2
import pytest

from bonbon.cli.pairs_cli import app as pairs_app
from bonbon.errors import UserError
from bonbon.ids import time_ordered_id
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.purge import purge
from bonbon.pairs.group_rows import group_document
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.spool.segment import Segment, create_segment, read_segment, written
from bonbon.pairs.spool.set_aside import SUFFIX, set_aside_in
from bonbon.pairs.spool.spool import Spool
from bonbon.store.database import open_database
from tests.long.outage import metric
from tests.support.data.groups import scored_group
from tests.support.data.stores import as_json, fill, run, sqlite
from tests.support.service.fake_service import BODY, CHAT, in_thread, rows
from tests.support.service.forked_service import ForkedService
from tests.support.until import until


def line(document: dict[str, Any]) -> bytes:
    text = json.dumps(document).encode()
    return b"%08x %s\n" % (crc32(text), text)


def unknown_value() -> bytes:
    return line(group_document(scored_group(1)) | {"unclean": "another release knows why"})


def missing_value() -> bytes:
    document = group_document(scored_group(2))
    del document["version"]
    return line(document)


def no_group() -> bytes:
    return line({"id": "x"})


def time_without_zone() -> bytes:
    return line(group_document(scored_group(5)) | {"time": "2026-01-01T00:00:00"})


def nested_too_deeply() -> bytes:
    text = b"[" * 100_000
    return b"%08x %s\n" % (crc32(text), text)


def no_json() -> bytes:
    return b"%08x %s\n" % (crc32(b"{"), b"{")


def damaged() -> bytes:
    return written(scored_group(3)).replace(b"question", b"quEstion")


def no_text() -> bytes:
    return b"\xff\xfe\x00 not even text\n"


LINES = (unknown_value, missing_value, no_group, time_without_zone, nested_too_deeply, no_json, damaged, no_text)


def symbolic_link(path: Path) -> None:
    target = path.parent.parent / "somewhere-else"
    target.write_bytes(written(scored_group(4)))
    path.symlink_to(target)


def dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def directory(path: Path) -> None:
    (path / "inside").mkdir(parents=True)


def pipe(path: Path) -> None:
    os.mkfifo(path)


THINGS = (symbolic_link, dangling_link, directory, pipe)


def new_segment(spool: Path) -> Path:
    spool.mkdir(parents=True, exist_ok=True)
    return spool / f"{time_ordered_id()}.groups"


async def test_a_service_starts_with_it_stores_what_is_sound_and_shows_the_rest(tmp_path: Path) -> None:
    spool = tmp_path / "data" / "spool"
    good = [scored_group(number, request_id=f"good {number}") for number in range(3)]
    bad = [make() for make in LINES]
    new_segment(spool).write_bytes(written(good[0]) + b"".join(bad[:3]) + written(good[1]))
    for make in THINGS:
        make(new_segment(spool))
    new_segment(spool).write_bytes(b"".join(bad[3:]) + written(good[2]) + written(scored_group(9))[:100])
    service = ForkedService(tmp_path)
    await service.start()
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        assert (await client.post(CHAT, json=BODY)).status_code == 200
        logged = {group_id for (group_id,) in rows(tmp_path, "SELECT id FROM groups")}
        assert {group.id for group in good} <= logged
        assert await metric(client, "bonbon_spool_bytes") == 0
        assert await metric(client, "bonbon_groups_set_aside") == len(LINES) + len(THINGS)
    assert await service.stop() == 0
    assert list(spool.glob("*.groups")) == []
    kept = set_aside_in(spool)
    assert [entry.line.data for entry in kept.entries() if entry.line is not None] == bad
    assert len([entry for entry in kept.entries() if entry.line is None]) == len(THINGS)
    assert len(read_segment(tmp_path / "data" / "somewhere-else")) == 1, "what a link leads to is nobody's business"
    told = (tmp_path / "service.log").read_text()
    assert told.count("set aside") == 2 + len(THINGS)
    shown = in_thread(as_json, pairs_app, "spool", "--data-dir", tmp_path / "data")
    assert (shown["waiting"], sum(shown["set_aside"].values())) == (0, len(LINES) + len(THINGS))


def test_what_is_set_aside_is_replayed_when_it_can_be_read_and_deleted_when_told_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 2**20)
    group = scored_group(1)
    spool.set_aside.add([(written(group), "the database refused it"), (damaged(), "it is damaged")])
    spool.set_aside.add([(no_text(), "it is damaged")])
    options = ("--data-dir", tmp_path)
    assert run(pairs_app, "spool", *options).exit_code == 0
    asked = run(pairs_app, "spool", "--replay", *options)
    assert "there is no database" in str(asked.exception)
    made = run(pairs_app, "spool", "--replay", *options, "--database", f"sqlite+aiosqlite:///{a_database(tmp_path)}")
    assert "1 groups are now in the log; 2 are still set aside" in made.stdout
    kept = run(pairs_app, "spool", "--delete", *options, input="n\n")
    assert kept.exit_code == 1
    assert set_aside_in(tmp_path / "spool").recount() == 2
    assert as_json(pairs_app, "spool", "--delete", "--yes", *options) == {"deleted": 2}
    assert set_aside_in(tmp_path / "spool").recount() == 0


def a_database(directory: Path) -> Path:
    fill(sqlite(directory / "made"), [])
    return directory / "made" / "bonbon.db"


def test_a_deletion_reaches_what_was_set_aside(tmp_path: Path) -> None:
    """Lines that name a user and a time match by them, even if they are not groups; other lines match by age alone."""
    now = datetime.now(UTC)
    old = {"time": (now - timedelta(days=30)).isoformat()}
    kept = set_aside_in(tmp_path)
    ada, bob = (written(scored_group(number, user=user)) for number, user in enumerate(("ada", "bob")))
    cannot = line(group_document(scored_group(3, user="ada")) | {"unclean": "unknown"})
    ancient = line(group_document(scored_group(4, user="cy")) | old)
    kept.add([(data, "r") for data in (ada, bob, cannot, ancient, no_text())])
    assert kept.matching(Conditions(user="ada")) == 2
    assert kept.erase(Conditions(user="ada")) == 2
    assert kept.erase(Conditions(older_than=now - timedelta(days=1))) == 1
    assert [entry.line.data for entry in kept.entries() if entry.line] == [bob, no_text()]
    assert kept.erase(Conditions(older_than=datetime.now(UTC))) == 2


def test_what_earlier_releases_put_aside_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "refused").write_bytes(written(scored_group(1)) + written(scored_group(2)))
    spool = Spool(tmp_path, 2**20)
    assert spool.set_aside.count == 2
    assert not (tmp_path / "refused").exists()
    assert Spool(tmp_path, 2**20).set_aside.count == 2


@pytest.mark.parametrize("make", THINGS)
def test_what_is_no_file_in_the_place_of_an_earlier_release_is_set_aside(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    (tmp_path / "spool").mkdir()
    make(tmp_path / "spool" / "refused")
    assert Spool(tmp_path / "spool", 2**20).set_aside.count == 1
    assert not os.path.lexists(tmp_path / "spool" / "refused")


@pytest.mark.parametrize("make", THINGS)
async def test_a_service_starts_whatever_has_been_put_among_what_is_set_aside(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    kept = set_aside_in(tmp_path)
    kept.add([(damaged(), "it is damaged"), (time_without_zone(), "it is damaged")])
    make(kept.directory / f"0{SUFFIX}")
    (kept.directory / f"1{SUFFIX}").write_bytes(
        b'[]\n{"line": 5}\n\xff\n{"line": "", "time": "2026-01-01", "reason": {}}\n'
    )
    spool = Spool(tmp_path, 2**20)
    assert spool.set_aside.count == spool.set_aside.reasons().total() == 7
    assert spool.set_aside.erase(Conditions(older_than=datetime.now(UTC))) == 6
    assert spool.set_aside.recount() == 1
    spool.set_aside.clear()
    assert spool.set_aside.count == 0


def test_two_things_of_one_name_are_both_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 2**20)
    for _ in range(2):
        path = tmp_path / "spool" / "1.groups"
        directory(path)
        assert spool.take(path) is None
        assert not path.exists()
    symbolic_link(path)
    assert spool.take(path) is None
    dangling_link(path)
    assert spool.take(path) is None
    assert spool.set_aside.recount() == 4


def test_a_spool_that_is_no_directory_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "loop", "dangling"):
        with pytest.raises(UserError, match="is not a directory"):
            Spool(tmp_path / name, 2**20)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_stays(tmp_path: Path) -> None:
    path = new_segment(tmp_path)
    path.write_bytes(written(scored_group(1)))
    path.chmod(0)
    spool = Spool(tmp_path, 2**20)
    assert spool.take(path) is None
    assert path.exists()


async def test_a_group_that_no_database_can_be_asked_about_keeps_no_other_from_it(tmp_path: Path) -> None:
    """The line is intact, but one of its values has a type that no release writes."""
    spool = Spool(tmp_path / "spool", 2**20)
    bad = [line(group_document(scored_group(number)) | {"tenant": 5}) for number in range(2)]
    good = [scored_group(number) for number in range(2, 6)]
    for data, group in zip([*bad, b"", b""], good, strict=True):
        new_segment(tmp_path / "spool").write_bytes(data + written(group))
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        await purge(database, Conditions(user="nobody"))  # whether each group was deleted is looked up, too
        log = PairLog(database, spool, retry=0.01)
        await log.start()
        assert [await log.group(group.id) for group in good] == good
        for number in range(6, 100):
            await log.append(scored_group(number))
            if spool.set_aside.count == len(bad):
                break
        await until(lambda: spool.paths() == [])
        await log.stop()
    assert [entry.line.data for entry in spool.set_aside.entries() if entry.line] == bad


async def test_a_retry_is_answered_whatever_waits_in_the_spool(tmp_path: Path) -> None:
    """Another process holds the segment, so its lines are not set aside yet."""
    spool = Spool(tmp_path, 2**20)
    holder = create_segment(new_segment(tmp_path))
    holder.write(nested_too_deeply() + line({"idempotency": ["a list"]}) + line({"idempotency": {}}))
    group = scored_group(1, idempotency="a" * 64)
    holder.write(written(group))
    assert spool.find("a" * 64) == group
    spool.set_aside.add([(nested_too_deeply(), "it is damaged")])
    assert spool.set_aside.erase(Conditions(user="ada")) == 0
    holder.close()


class FailingSpool(Spool):
    """A spool with a file on a sector that the disk cannot read."""

    broken: Path

    def take(self, path: Path) -> Segment | None:
        if path == self.broken:
            raise OSError(errno.EIO, "Input/output error")
        return super().take(path)


async def test_groups_are_stored_although_what_is_beside_them_cannot_be_set_aside(tmp_path: Path) -> None:
    spool, good, bad = Spool(tmp_path / "spool", 2**20), scored_group(1), [damaged(), no_json()]
    path = new_segment(tmp_path / "spool")
    path.write_bytes(bad[0] + written(good) + bad[1])
    spool.set_aside.directory.write_text("in the way")
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        log = PairLog(database, spool, retry=0.01)
        await log.start()
        assert await log.group(good.id) == good
        assert path.read_bytes() == b"".join(bad)
        spool.set_aside.directory.unlink()
        await until(lambda: spool.paths() == [])
        await log.stop()
    assert [entry.line.data for entry in spool.set_aside.entries() if entry.line] == bad


async def test_the_spool_goes_on_when_a_segment_cannot_be_read(tmp_path: Path) -> None:
    """The other segments are emptied, and the failing one loses nothing."""
    spool = FailingSpool(tmp_path / "spool", 2**20)
    spool.broken = new_segment(tmp_path / "spool")
    spool.broken.write_bytes(written(scored_group(2)))
    spool.append([scored_group(1)])
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        log = PairLog(database, spool, retry=0.01)
        await log.start()
        await until(lambda: spool.paths() == [spool.broken])
        await log.stop()
