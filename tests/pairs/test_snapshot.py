"""Tests of training snapshots: their contents, their hash, and the refusal of changed files."""

import asyncio
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bonbon.engines.engine import Sampling, VersionKind
from bonbon.errors import UserError
from bonbon.pairs.group_records import Group, Unclean
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.reader import RewardKey
from bonbon.pairs.reading.snapshot import (
    GROUPS,
    RECORD,
    SCHEMA,
    Fractions,
    Snapshot,
    Split,
    read_rows,
    read_snapshot,
    split_of,
    take_snapshot,
)
from bonbon.prompt import Message, Prompt
from bonbon.registry.registry import Registry
from bonbon.store.database import Database, open_database
from tests.support.data.groups import scored_group
from tests.support.service.running_service import write_adapter


async def fill(log: PairLog, count: int, **changes: Any) -> list[Group]:
    new = [scored_group(number, **changes) for number in range(count)]
    await asyncio.gather(*(log.append(group) for group in new))
    return new


FRACTIONS = Fractions(test=0.2, validation=0.3)


async def take(database: Database, directory: Path, **options: Any) -> Snapshot:
    defaults: dict[str, Any] = {"version": "tiny", "fractions": FRACTIONS}
    return await take_snapshot(database, directory, **(defaults | options))


async def test_it_holds_every_group_of_one_sampler_and_reward_that_may_be_trained_on(
    database: Database, log: PairLog, tmp_path: Path
) -> None:
    old = await fill(log, 2, reward_version="0")
    groups = await fill(log, 30)
    tied = scored_group(30, rewards=(1.0, 1.0, 1.0))
    await log.append(tied)
    groups.append(tied)
    await fill(log, 3, version="v1")
    await log.append(scored_group(unclean=Unclean.SAMPLING))
    told: list[int] = []
    snapshot = await take(database, tmp_path / "snapshot", progress=told.append)
    rows = list(read_rows(snapshot))
    assert [row["group_id"] for row in rows] == [group.id for group in groups]
    first, row = groups[0], rows[0]
    assert (row["prompt_token_ids"], row["prompt_digest"]) == (list(first.prompt_token_ids), first.prompt.digest)
    assert json.loads(row["prompt"]) == {"messages": list(first.prompt.messages or ())}
    ranked = sorted(first.candidates, key=lambda candidate: candidate.rank or 0)
    assert row["candidates"] == [list(candidate.token_ids) for candidate in ranked]
    assert row["rewards"] == [candidate.reward for candidate in ranked]
    assert row["logprobs"] == [candidate.logprob for candidate in ranked]
    assert (snapshot.groups, snapshot.other_rewards, told) == (31, len(old), [31])
    assert (snapshot.reward_name, snapshot.reward_version) == ("helpful", "1")
    assert (snapshot.first_group, snapshot.last_group) == (groups[0].id, groups[-1].id)
    splits = [row["split"] for row in rows]
    assert splits == [split_of(group.prompt.root_digest, FRACTIONS) for group in groups]
    counts = snapshot.train_groups, snapshot.validation_groups, snapshot.test_groups
    assert counts == tuple(splits.count(split) for split in Split)
    assert min(counts) > 0
    older = await take(database, tmp_path / "older", reward=RewardKey("helpful", "0"))
    assert [row["group_id"] for row in read_rows(older)] == [group.id for group in old]


async def test_it_comes_back_from_its_directory(database: Database, log: PairLog, tmp_path: Path) -> None:
    await fill(log, 3, n=4)
    await fill(log, 3, n=8, sampling=Sampling(max_tokens=8, temperature=0.7))
    snapshot = await take(database, tmp_path / "snapshot")
    assert (snapshot.ns, snapshot.temperatures) == ((4, 8), (0.7, 1.0))
    assert read_snapshot(tmp_path / "snapshot") == snapshot
    moved = (tmp_path / "snapshot").rename(tmp_path / "moved")
    assert read_snapshot(moved) == replace(snapshot, path=moved)
    assert sorted(path.name for path in moved.iterdir()) == [GROUPS, RECORD]
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


async def test_the_hash_is_the_same_for_the_same_groups_and_no_others(
    database: Database, log: PairLog, tmp_path: Path
) -> None:
    """A second snapshot has the same hash; other splits, another sampler or reward, or one more group change it."""
    groups = await fill(log, 5)
    first = await take(database, tmp_path / "1")
    assert (await take(database, tmp_path / "2")).hash == first.hash
    others = [await take(database, tmp_path / "3", fractions=Fractions(0.9, 0.0))]
    others.append(await take(database, tmp_path / "4", after=groups[0].id))
    more = await fill(log, 1)
    others.append(await take(database, tmp_path / "5"))
    assert others[-1].last_group == more[0].id
    assert len({first.hash, *(other.hash for other in others)}) == 4


@pytest.mark.parametrize("changes", [{"version": "v1"}, {"reward_name": "brief"}, {"reward_version": "2"}])
async def test_the_hash_names_sampler_and_reward(
    database_url: str, database: Database, log: PairLog, tmp_path: Path, changes: dict[str, Any]
) -> None:
    group = scored_group(1)
    await log.append(group)
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}") as other:
        other_log = PairLog(other)
        await other_log.start()
        await other_log.append(group)
        same = await take(other, tmp_path / "same")
        await other_log.append(scored_group(1, **changes))
        changed = await take(other, tmp_path / "changed", version=changes.get("version", "tiny"))
        await other_log.stop()
    assert same.hash == (await take(database, tmp_path / "here")).hash  # whichever database it comes from
    assert changed.hash != same.hash


async def test_every_form_of_prompt_and_any_text_is_kept(database: Database, log: PairLog, tmp_path: Path) -> None:
    prompts = [Prompt.user("naïve 日本 😀 \ud800"), Prompt(text="Once\0upon"), Prompt(token_ids=(5, 6))]
    for prompt in prompts:
        await log.append(scored_group(prompt=prompt))
    snapshot = await take(database, tmp_path / "snapshot")
    assert [json.loads(row["prompt"]) for row in read_rows(snapshot)] == [
        {"messages": [{"role": "user", "content": "naïve 日本 😀 \ufffd"}]},
        {"text": "Once\ufffdupon"},
        {"token_ids": [5, 6]},
    ]
    assert read_snapshot(tmp_path / "snapshot") == snapshot


async def test_the_base_is_named_by_its_files(database: Database, log: PairLog, tmp_path: Path) -> None:
    await fill(log, 1)
    assert (await take(database, tmp_path / "unknown")).base_digest == ""
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    version = await Registry(database, tmp_path / "versions").register_base("tiny", base)
    assert (await take(database, tmp_path / "known")).base_digest == version.digest != ""


async def test_nothing_to_take_and_nothing_overwritten(database: Database, log: PairLog, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no group of version 'tiny' that can be trained on; send requests first"):
        await take(database, tmp_path / "snapshot")
    (group,) = await fill(log, 1)
    with pytest.raises(UserError, match="no group of version 'tiny' that can be trained on"):
        await take(database, tmp_path / "snapshot", after=group.id)
    with pytest.raises(UserError, match="was scored by 'helpful' '2'"):
        await take(database, tmp_path / "snapshot", reward=RewardKey("helpful", "2"))
    assert list(tmp_path.iterdir()) == []
    await take(database, tmp_path / "snapshot")
    with pytest.raises(UserError, match="snapshot exists; a snapshot is never overwritten"):
        await take(database, tmp_path / "snapshot")


async def test_a_long_log_is_taken_and_read_in_constant_memory(
    database: Database, log: PairLog, tmp_path: Path
) -> None:
    """Four times the groups may not use 1.5 times the memory; the first snapshot fills caches."""
    for version, count in (("few", 1000), ("many", 4000)):
        await fill(log, count, version=version, n=2)
    peaks: dict[str, tuple[int, int]] = {}
    for number, version in enumerate(("few", "few", "many")):
        tracemalloc.start()
        await take(database, tmp_path / str(number), version=version)
        taking = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        tracemalloc.start()
        read_snapshot(tmp_path / str(number))
        peaks[version] = taking, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["many"][0] < 1.5 * peaks["few"][0]
    assert peaks["many"][1] < 1.5 * peaks["few"][1]


def test_the_same_conversations_are_kept_every_time() -> None:
    """Of 2000, a tenth each within 5 standard deviations (one error in a million); a larger fraction includes them
    all."""
    digests = [Prompt.user(f"question {number}").root_digest for number in range(2000)]

    def kept(split: Split, test: float, validation: float) -> set[str]:
        return {digest for digest in digests if split_of(digest, Fractions(test, validation)) is split}

    for split in (Split.TEST, Split.VALIDATION):
        tenth = kept(split, 0.1, 0.1)
        assert abs(len(tenth) - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
        assert tenth < kept(split, 0.2, 0.2)
        assert not kept(split, 0.0, 0.0)
    assert kept(Split.TEST, 1.0, 0.0) == kept(Split.TRAIN, 0.0, 0.0) == set(digests)
    assert not kept(Split.TEST, 0.4, 0.1) & kept(Split.VALIDATION, 0.1, 0.4), "a test is never validated on later"


def test_every_turn_of_a_conversation_is_in_one_split() -> None:
    first: Message = {"role": "user", "content": "Where is my order?"}
    answer: Message = {"role": "assistant", "content": "On its way."}
    then: Message = {"role": "user", "content": "When?"}
    assert Prompt.chat(first, answer, then).root_digest == Prompt.chat(first).root_digest
    assert Prompt.chat(then).root_digest != Prompt.chat(first).root_digest


async def test_a_versions_snapshot_has_its_bases_groups_too(database: Database, log: PairLog, tmp_path: Path) -> None:
    """The base's groups come first. Groups of both belong to the snapshot in any order, and no others do."""
    registry = Registry(database, tmp_path / "versions")
    await registry.register_base("tiny", None)
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", 1)
    version, other = [
        await registry.register(
            base="tiny", parent="tiny", kind=VersionKind.ADAPTER, directory=tmp_path / "adapter", training={}
        )
        for _ in range(2)
    ]
    by_version = await fill(log, 4, version=version.name)
    by_base = await fill(log, 3)
    await fill(log, 2, version=other.name)
    snapshot = await take(database, tmp_path / "snapshot", version=version.name)
    rows = list(read_rows(snapshot))
    assert [row["group_id"] for row in rows] == [group.id for group in by_base + by_version]
    assert [row["version"] for row in rows] == ["tiny"] * 3 + [version.name] * 4
    assert (snapshot.version, snapshot.base) == (version.name, "tiny")
    assert (snapshot.first_group, snapshot.last_group) == (by_version[0].id, by_base[-1].id)
    assert (await take(database, tmp_path / "base")).groups == 3


@pytest.fixture
async def taken(tmp_path: Path) -> Path:
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        log = PairLog(database)
        await log.start()
        await fill(log, 3)
        await log.stop()
        return (await take(database, tmp_path / "snapshot")).path


def record_of(directory: Path, **changes: Any) -> None:
    record = json.loads((directory / RECORD).read_text()) | changes
    (directory / RECORD).write_text(json.dumps(record))


def rows_of(directory: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    rows = pq.read_table(directory / GROUPS).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), directory / GROUPS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: rows_of(d, lambda rows: rows.pop()),
        lambda d: rows_of(d, lambda rows: rows.reverse()),
        lambda d: rows_of(d, lambda rows: rows[0]["rewards"].append(1.5)),
        lambda d: rows_of(d, lambda rows: rows[1].update(split="test" if rows[1]["split"] == "train" else "train")),
        lambda d: rows_of(d, lambda rows: rows[2]["candidates"][0].append(7)),
        lambda d: record_of(d, hash="0" * 64),
        lambda d: record_of(d, version="v1"),
        lambda d: record_of(d, reward_version="2"),
        lambda d: record_of(d, groups=2),
        lambda d: record_of(d, temperatures=[0.5]),
    ],
    ids=[
        "one fewer",
        "order",
        "reward",
        "split",
        "tokens",
        "hash",
        "version",
        "reward version",
        "count",
        "temperature",
    ],
)
async def test_what_is_not_what_the_hash_names_is_refused(taken: Path, damage: Callable[[Path], None]) -> None:
    read_snapshot(taken)
    damage(taken)
    with pytest.raises(UserError, match=r"does not match snapshot\.json"):
        read_snapshot(taken)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / GROUPS).unlink(),
        lambda d: (d / RECORD).unlink(),
        lambda d: (d / GROUPS).write_bytes((d / GROUPS).read_bytes()[:-100]),
        lambda d: (d / GROUPS).write_bytes(b""),
        lambda d: (d / RECORD).write_text("{"),
        lambda d: (d / RECORD).write_text("[]"),
        lambda d: (d / RECORD).write_text("null"),
        lambda d: record_of(d, unknown=1),
        lambda d: pq.write_table(pa.table({"group_id": ["x"]}), d / GROUPS),
        lambda d: d.rename(d.with_name("elsewhere")),
    ],
    ids=["no pairs", "no record", "truncated", "empty", "bad JSON", "list", "null", "unknown", "columns", "gone"],
)
async def test_what_is_no_snapshot_is_refused(taken: Path, damage: Callable[[Path], object]) -> None:
    damage(taken)
    with pytest.raises(UserError, match=r"is not a readable snapshot: .*; take a new one"):
        read_snapshot(taken)
