"""Texts of users are stored in the log only, and only for the retention period."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bonbon.concurrency.deadlines import Timeouts
from bonbon.engines.engine import VersionKind
from bonbon.erase import erase
from bonbon.errors import StoreUnavailable
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.snapshot import Fractions, Snapshot, take_snapshot
from bonbon.pairs.spool.spool import Spool
from bonbon.registry.registry import Registry
from bonbon.store.database import Database, open_database
from tests.support.data.groups import scored_group
from tests.support.service.fake_service import CHAT, new_key, rows
from tests.support.service.forked_service import ForkedService
from tests.support.service.running_service import write_adapter
from tests.support.until import until

CANARIES = (
    "canary-prompt",
    "canary-user",
    "canary-meta",
    "canary-model",
    "canary-field",
    "canary-comment",
    "canary-stop",
)


def says(**fields: Any) -> dict[str, Any]:
    return {"model": "bonbon", "messages": [{"role": "user", "content": "canary-prompt"}], "max_tokens": 12} | fields


async def test_nothing_that_was_said_and_no_key_is_in_logs_or_metrics_or_in_errors_of_others(tmp_path: Path) -> None:
    """Produces answers, errors and a full queue with canary strings in every text."""
    key = new_key(tmp_path, "canary", "--tenant", "canary-tenant")[1]
    wrong = "bb-canary-wrong-key"
    service = ForkedService(
        tmp_path, engine_options={"delay": 0.005}, service={"max_tokens_in_flight": 100, "max_waiting": 2}
    )
    await service.start()
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0, headers=headers) as client:
        for body in (
            says(user="canary-user", metadata={"canary-meta": "canary-meta"}),
            says(stream=True, user="canary-user"),
            says(model="canary-model"),
            says(**{"canary-field": "canary-field"}),
            says(n=10**9),
            says(max_tokens=10**6, stop=["canary-stop"]),
            says(messages="canary-prompt"),
        ):
            await client.post(CHAT, json=body)
        await client.post(CHAT, json=says(), headers={"authorization": f"Bearer {wrong}"})
        await client.post(CHAT, content=b'{"canary-field": canary-prompt')
        await client.post("/v1/feedback", json={"group_id": "canary-model", "comment": "canary-comment"})
        burst = await asyncio.gather(*(client.post(CHAT, json=says()) for _ in range(20)))
        assert {answer.status_code for answer in burst} == {200, 503}
        assert not any("canary" in answer.text for answer in burst if answer.status_code == 503)
        metrics = (await client.get("/metrics")).text
    assert await service.stop() == 0
    written = (tmp_path / "service.log").read_text() + metrics
    assert "bonbon_requests_total" in written
    for secret in (*CANARIES, key, key.removeprefix("bb-")[:20], wrong, "canary-tenant"):
        assert secret not in written
    assert rows(tmp_path, "SELECT count(*) FROM groups WHERE end_user = 'canary-user'") == [(2,)]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as opened:
        yield opened


async def log_groups(database: Database, count: int = 6) -> None:
    """Stores groups of two users."""
    groups = [scored_group(number, user=("ada", "bob")[number % 2]) for number in range(count)]
    log = PairLog(database)
    await log.start()
    for group in groups:
        await log.append(group)
    await log.stop()


async def trained(database: Database, directory: Path, snapshot: Snapshot, *, parent: str = "tiny") -> str:
    """Registers a version with the training record that a round writes."""
    weights = directory / "output"
    weights.mkdir(parents=True, exist_ok=True)
    write_adapter(weights, len(parent))
    record = {
        "sampler": snapshot.version,
        "first_group": snapshot.first_group,
        "last_group": snapshot.last_group,
        "reward": {"name": snapshot.reward_name, "version": snapshot.reward_version},
        "settings": {"tenants": None},
    }
    registry = Registry(database, directory / "versions")
    version = await registry.register(
        base="tiny", parent=parent, kind=VersionKind.ADAPTER, directory=weights, training=record
    )
    return version.name


async def test_a_deletion_reaches_rows_snapshots_and_future_training_and_names_what_learnt(
    database: Database, tmp_path: Path
) -> None:
    await log_groups(database)
    runs = tmp_path / "runs"
    with_ada = await take_snapshot(
        database, runs / "round-1" / "snapshot", version="tiny", fractions=Fractions(test=0.1, validation=0.1)
    )
    registry = Registry(database, tmp_path / "versions")
    await registry.register_base("tiny", None)
    first = await trained(database, tmp_path / "one", with_ada)
    erased = await erase(database, runs, Conditions(user="ada"), spool_dir=tmp_path / "spool")
    assert erased.groups == 3
    assert erased.lineage.trained == (first,)
    assert erased.snapshots == (with_ada.groups_file,)
    assert not with_ada.groups_file.exists()
    again = await take_snapshot(
        database, runs / "round-2" / "snapshot", version="tiny", fractions=Fractions(test=0.1, validation=0.1)
    )
    assert again.groups == 3
    nothing = await erase(database, runs, Conditions(user="ada"), spool_dir=tmp_path / "spool")
    assert (nothing.groups, nothing.lineage.trained, nothing.snapshots) == (0, (), ())
    assert again.groups_file.exists()


async def test_what_comes_late_from_a_spool_is_not_brought_back(database: Database, tmp_path: Path) -> None:
    """A gateway died with groups in its spool, and their user's data was deleted meanwhile."""
    late = [
        scored_group(number, user=user, request_id=f"r{number}") for number, user in enumerate(("ada", "bob", "cy"))
    ]
    before = Spool(tmp_path / "spool", 2**20)
    before.append(late)
    before.close()
    await erase(database, tmp_path, Conditions(user="ada"), spool_dir=tmp_path / "spool")
    await erase(database, tmp_path, Conditions(request_id="r2"), spool_dir=tmp_path / "spool")
    log = PairLog(database, Spool(tmp_path / "spool", 2**20), retry=0.01)
    await log.start()
    async with asyncio.timeout(30):
        while log.spool is not None and not log.spool.empty:
            await asyncio.sleep(0.01)
    assert [await log.group(group.id) is not None for group in late] == [False, True, False]
    # Whoever comes back after that is a new matter.
    new = scored_group(9, user="ada")
    await log.append(new)
    assert await log.group(new.id) is not None
    await log.stop()


async def test_a_log_that_a_reader_keeps_from_being_emptied_is_an_error_and_the_next_deletion_empties_it(
    tmp_path: Path,
) -> None:
    url, file = f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}", tmp_path / "bonbon.db-wal"
    async with open_database(url, timeouts=Timeouts(call=1.0)) as database:
        log = PairLog(database)
        await log.start()
        await log.append(scored_group(0, user="ada"))
        snapshot = await take_snapshot(
            database, tmp_path / "round-1" / "snapshot", version="tiny", fractions=Fractions(test=0.1, validation=0.1)
        )
        with closing(sqlite3.connect(tmp_path / "bonbon.db")) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM groups").fetchone()
            with pytest.raises(StoreUnavailable, match="another process reads the database"):
                await erase(database, tmp_path, Conditions(user="ada"), spool_dir=tmp_path / "spool")
            assert b"answer 0.0" in file.read_bytes()
        assert not snapshot.groups_file.exists(), "the next deletion finds no groups, and looks for no snapshots"
        await erase(database, tmp_path, Conditions(user="ada"), spool_dir=tmp_path / "spool")
        assert b"answer 0.0" not in file.read_bytes()
        await log.stop()


async def test_what_is_too_old_goes_by_itself(tmp_path: Path) -> None:
    """In this test, groups expire after one second."""
    limits = {"retention_days": 1 / 86_400, "retention_poll": 0.1}
    service = ForkedService(tmp_path, service=limits)
    await service.start()
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        answer = await client.post(CHAT, json=says())
        assert answer.json()["bonbon"]["group_id"]
    async with asyncio.timeout(60):
        while rows(tmp_path, "SELECT id FROM groups UNION ALL SELECT group_id FROM candidates"):
            await asyncio.sleep(0.1)
    # Only once the rows are gone does the write-ahead log lose what it remembers of them.
    data = tmp_path / "data"
    await until(lambda: not any(b"canary-prompt" in path.read_bytes() for path in data.glob("bonbon.db*")))
    assert await service.stop() == 0
    assert json.loads((tmp_path / "service.log").read_text().splitlines()[-1])
