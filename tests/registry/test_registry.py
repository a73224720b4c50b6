"""Tests of the model registry on SQLite and PostgreSQL: names, aliases, states and the audit trail."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.errors import Conflict, StoreError, UnknownVersion, UserError
from bonbon.files.manifest import base_digest_of_every_file
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import Version, VersionState
from bonbon.store.database import Database, open_database
from bonbon.store.tables import events, versions
from tests.support.service.running_service import new_version, version_name, write_adapter

BASE = "tiny"
PASSED: dict[str, Any] = {"passed": True, "reasons": []}
FAILED: dict[str, Any] = {"passed": False, "reasons": ["the win rate is too low"]}


@pytest.fixture
async def registry(database: Database, tmp_path: Path) -> Registry:
    """A registry with a registered base whose files are elsewhere."""
    registry = Registry(database, tmp_path / "versions")
    await registry.register_base(BASE, None)
    return registry


async def adapter(registry: Registry, weights: int, **changes: Any) -> Version:
    return await new_version(registry, weights, base=BASE, **changes)


async def approved(registry: Registry, weights: int) -> Version:
    return await registry.approve((await adapter(registry, weights)).name, PASSED)


async def trail(registry: Registry, version: str | None = None) -> list[tuple[str, str, str]]:
    """Returns kind, version and actor of every event, oldest first."""
    return [(event.kind, event.version, event.actor) for event in (await registry.history(version=version))[::-1]]


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """A base model with additional pickled weights."""
    directory = tmp_path / "Tiny"
    directory.mkdir()
    write_adapter(directory, 0)
    (directory / "pytorch_model.bin").write_bytes(b"never loaded")
    return directory


async def test_a_version_comes_back_as_it_was_registered(registry: Registry, tmp_path: Path) -> None:
    directory = tmp_path / "trained"
    directory.mkdir()
    write_adapter(directory, 7)
    made = await registry.register(
        base=BASE,
        parent=BASE,
        kind=VersionKind.ADAPTER,
        directory=directory,
        training={"snapshot": {"hash": "abc"}, "loss": "bonbon"},
        evaluation={"win_rate": 0.8, "kl": float("nan")},
    )
    found = await registry.get(made.name)
    assert found.evaluation == {"win_rate": 0.8, "kl": None}  # JSON has no NaN
    assert (found.name, found.base, found.parent) == (f"tiny-bonbon-0001-{found.digest[:8]}", BASE, BASE)
    assert (found.kind, found.state, found.verdict) == (VersionKind.ADAPTER, VersionState.REGISTERED, None)
    assert (found.training, found.created) == (made.training, made.created)
    assert found.directory == tmp_path / "versions" / found.digest
    assert found.files == VersionFiles(found.name, VersionKind.ADAPTER, found.directory)
    assert [version.name for version in await registry.list()] == [BASE, found.name]


async def test_names_count_up_for_each_base_and_never_come_again(registry: Registry) -> None:
    await registry.register_base("other", None)
    names = [(await adapter(registry, weights)).name for weights in (1, 1, 2)]  # the same files are another version
    await registry.refuse(names[-1], FAILED)
    names.append((await adapter(registry, 3)).name)
    assert names == [version_name(number, weights, base=BASE) for number, weights in enumerate((1, 1, 2, 3), start=1)]
    assert (await new_version(registry, 1, base="other")).name == version_name(1, 1, base="other")


async def test_a_name_that_a_base_has_already_is_passed_over(registry: Registry) -> None:
    await registry.register_base(version_name(1, 1, base=BASE), None)
    assert (await adapter(registry, 1)).name == version_name(2, 1, base=BASE)


async def test_a_failed_registration_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    before = await trail(registry)
    for base, parent, error in ((BASE, "gone", UnknownVersion), ("gone", BASE, UnknownVersion)):
        with pytest.raises(error, match="there is no version 'gone'; `bonbon models list` shows"):
            await new_version(registry, 1, base=base, parent=parent)
    version = await adapter(registry, 1)
    await registry.register_base("other", None)
    with pytest.raises(UserError, match=f"'{version.name}' is not a base model"):
        await new_version(registry, 2, base=version.name)
    with pytest.raises(UserError, match="'other' is not a version of 'tiny'"):
        await adapter(registry, 2, parent="other")
    (tmp_path / "trained-3").mkdir()
    (tmp_path / "trained-3" / "weights.pkl").write_bytes(b"x")
    with pytest.raises(UserError, match=r"\.pkl files can contain code"):
        await adapter(registry, 3)
    assert len(await trail(registry)) == len(before) + 2
    assert (await adapter(registry, 2, parent=version.name)).name == version_name(2, 2, base=BASE)
    assert len(list((tmp_path / "versions").iterdir())) == 2


async def test_a_base_is_registered_once_and_may_move(database: Database, base_model: Path, tmp_path: Path) -> None:
    registry = Registry(database, tmp_path / "versions")
    first = await registry.register_base("tiny", base_model)
    assert (first.kind, first.state, first.directory) == (VersionKind.BASE, VersionState.APPROVED, base_model)
    assert await registry.register_base("tiny", base_model) == await registry.get("tiny")
    assert await registry.register_base("tiny", None) == await registry.get("tiny")
    moved = await registry.register_base("tiny", base_model.rename(tmp_path / "moved"))
    assert (moved.directory, moved.digest) == (tmp_path / "moved", first.digest)
    assert await registry.get("tiny") == moved
    assert await registry.verify("tiny") == moved
    write_adapter(tmp_path / "moved", 1)
    with pytest.raises(UserError, match="the registry knows 'tiny' with other files") as refusal:
        await registry.register_base("tiny", tmp_path / "moved")
    assert refusal.value.param == "model"
    with pytest.raises(UserError, match="was changed since it was registered"):
        await registry.verify("tiny")
    assert await trail(registry) == [("registered", "tiny", "service")]


async def test_a_base_that_an_earlier_release_registered_is_known_again(
    database: Database, base_model: Path, tmp_path: Path
) -> None:
    """The earlier digest covered every file, including those that are never loaded."""
    registry = Registry(database, tmp_path / "versions")
    (base_model / "README.md").write_text("a model card")
    first = await registry.register_base("tiny", base_model)
    earlier = base_digest_of_every_file(base_model)
    async with database.write() as connection:
        await connection.execute(versions.update().values(digest=earlier))
    assert earlier != first.digest
    assert (await registry.register_base("tiny", base_model)).digest == first.digest
    assert await registry.verify("tiny") == first


async def test_files_that_come_later_are_added_to_the_base(registry: Registry, base_model: Path) -> None:
    assert (await registry.get(BASE)).digest == ""
    assert (await registry.verify(BASE)).digest == ""
    added = await registry.register_base(BASE, base_model)
    assert added.digest
    assert await registry.get(BASE) == added


async def test_a_version_is_no_base(registry: Registry, base_model: Path) -> None:
    version = await adapter(registry, 1)
    with pytest.raises(UserError, match="name another data_dir"):
        await registry.register_base(version.name, base_model)


async def test_a_damaged_version_does_not_verify(registry: Registry) -> None:
    version = await adapter(registry, 1)
    assert await registry.verify(version.name) == version
    weights = version.directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated or changed"):
        await registry.verify(version.name)


async def test_a_version_goes_through_its_states_and_each_step_is_recorded(registry: Registry) -> None:
    await registry.promote(BASE, actor="first start")
    version = await adapter(registry, 1)
    await registry.record_evaluation(version.name, {"win_rate": 0.7})
    judged = await registry.approve(version.name, PASSED)
    assert (judged.state, judged.verdict) == (VersionState.APPROVED, PASSED)
    assert await registry.aliases() == {"champion": BASE, "challenger": version.name}
    promoted = await registry.promote(version.name, expected=BASE, actor="ada")
    assert promoted.state is VersionState.PROMOTED
    assert await registry.aliases() == {"champion": version.name, "previous": BASE}
    assert (await registry.get(BASE)).state is VersionState.RETIRED
    assert (await registry.get(version.name)).evaluation == {"win_rate": 0.7}
    back = await registry.rollback(actor="bob")
    assert (back.name, back.state) == (BASE, VersionState.PROMOTED)
    assert await registry.aliases() == {"champion": BASE, "previous": version.name}
    assert (await registry.get(version.name)).state is VersionState.RETIRED
    await registry.rollback()
    assert await registry.champion() == version.name
    await registry.record("swap_failed", version.name, "service", reason="out of memory")
    assert await trail(registry) == [
        ("registered", BASE, "service"),
        ("promoted", BASE, "first start"),
        ("registered", version.name, "trainer"),
        ("evaluated", version.name, "trainer"),
        ("approved", version.name, "gate"),
        ("promoted", version.name, "ada"),
        ("rolled_back", BASE, "bob"),
        ("rolled_back", version.name, "cli"),
        ("swap_failed", version.name, "service"),
    ]
    details = [event.detail for event in await registry.history(version=version.name)]
    assert details[0] == {"reason": "out of memory"}
    assert details[1] == {"replaced": BASE}
    assert details[2] == {"replaced": BASE, "forced": False}
    assert details[-1] == {"digest": version.digest, "parent": BASE}
    assert [event.kind for event in await registry.history(2)] == ["swap_failed", "rolled_back"]


async def test_what_the_gate_refused_is_promoted_by_force_only(registry: Registry) -> None:
    await registry.promote(BASE)
    unjudged, refused = await adapter(registry, 1), await adapter(registry, 2)
    await registry.approve(refused.name, PASSED)
    await registry.refuse(refused.name, FAILED)
    assert await registry.aliases() == {"champion": BASE}  # the challenger it was
    for version, state in ((unjudged, "registered"), (refused, "refused")):
        with pytest.raises(UserError, match=f"is {state}, not approved; .* --force overrides") as refusal:
            await registry.promote(version.name)
        assert refusal.value.param == "version"
    assert await registry.champion() == BASE
    await registry.promote(refused.name, force=True)
    assert await registry.champion() == refused.name
    assert (await registry.history(1))[0].detail == {"replaced": BASE, "forced": True}


async def test_a_newer_challenger_stays_when_an_older_one_is_refused(registry: Registry) -> None:
    older, newer = await approved(registry, 1), await approved(registry, 2)
    await registry.refuse(older.name, FAILED)
    assert await registry.aliases() == {"challenger": newer.name}
    await registry.promote(BASE)
    assert (await registry.aliases())["challenger"] == newer.name


async def test_what_was_promoted_once_is_judged_no_more_but_may_come_back(registry: Registry) -> None:
    await registry.promote(BASE)
    first, second = await approved(registry, 1), await approved(registry, 2)
    await registry.promote(first.name)
    await registry.promote(second.name)
    for version, state in ((first, "retired"), (second, "promoted")):
        for judge in (registry.approve, registry.refuse):
            with pytest.raises(UserError, match=f"is {state}; only a version that was never promoted can be judged"):
                await judge(version.name, FAILED)
    await registry.promote(first.name)
    assert await registry.aliases() == {"champion": first.name, "previous": second.name}


async def test_promoting_the_champion_changes_nothing(registry: Registry) -> None:
    await registry.promote(BASE)
    version = await approved(registry, 1)
    await registry.promote(version.name)
    before = await registry.aliases(), await trail(registry)
    assert (await registry.promote(version.name, expected=version.name)).state is VersionState.PROMOTED
    assert (await registry.aliases(), await trail(registry)) == before


async def test_there_may_be_nothing_to_roll_back_to(registry: Registry) -> None:
    for champion in (None, BASE):
        with pytest.raises(UserError, match=f"no previous version to roll back to; the champion is {champion!r}"):
            await registry.rollback()
        await registry.promote(BASE)


async def test_another_champion_than_expected_is_a_conflict(registry: Registry) -> None:
    first, second = await approved(registry, 1), await approved(registry, 2)
    with pytest.raises(Conflict, match=f"the champion is None, not '{BASE}'"):
        await registry.promote(first.name, expected=BASE)
    await registry.promote(BASE)
    await registry.promote(first.name, expected=BASE)
    with pytest.raises(Conflict, match=f"the champion is '{first.name}', not '{BASE}': another promotion came first"):
        await registry.promote(second.name, expected=BASE)
    assert await registry.champion() == first.name


async def test_what_is_not_there_is_named(registry: Registry) -> None:
    for act in (registry.get, registry.verify, registry.promote):
        with pytest.raises(UnknownVersion, match="no version 'gone'") as refusal:
            await act("gone")
        assert refusal.value.param == "version"
    for judge in (registry.approve, registry.refuse, registry.record_evaluation):
        with pytest.raises(UnknownVersion, match="no version 'gone'"):
            await judge("gone", {})
    assert await trail(registry, "gone") == []


async def test_a_change_that_fails_leaves_neither_change_nor_line(registry: Registry, database: Database) -> None:
    """The entry of the audit trail is written in the same transaction as the change."""
    await registry.promote(BASE)
    version = await approved(registry, 1)
    before = await registry.aliases()
    async with database.write() as connection:
        await connection.run_sync(events.drop)
    with pytest.raises(StoreError):
        await registry.promote(version.name)
    assert await registry.aliases() == before
    assert await registry.get(version.name) == version


async def own_registry(url: str, root: Path, act: Any) -> Any:
    """Runs `act` on a registry with its own connections, as another process would."""
    async with open_database(url) as database:
        return await act(Registry(database, root))


async def test_of_many_promotions_that_expect_the_same_champion_one_succeeds(
    registry: Registry, database_url: str
) -> None:
    await registry.promote(BASE)
    contenders = [(await approved(registry, weights)).name for weights in range(6)]
    outcomes = await asyncio.gather(
        *(
            own_registry(database_url, registry.root, lambda own, name=name: own.promote(name, expected=BASE))
            for name in contenders
        ),
        return_exceptions=True,
    )
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Version)]
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 5
    assert await registry.aliases() == {"champion": winner.name, "previous": BASE} | (
        {} if winner.name == contenders[-1] else {"challenger": contenders[-1]}
    )
    promoted = [event for event in await registry.history() if event.kind == "promoted"]
    assert [event.version for event in promoted] == [winner.name, BASE]


async def test_replicas_that_start_at_once_register_one_base_and_one_champion(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    async def start(own: Registry) -> Version:
        await own.register_base(BASE, None)
        return await own.promote(BASE, actor="first start")

    started = await asyncio.gather(*(own_registry(database_url, tmp_path / "versions", start) for _ in range(6)))
    assert {version.name for version in started} == {BASE}
    registry = Registry(database, tmp_path / "versions")
    assert await trail(registry) == [("registered", BASE, "service"), ("promoted", BASE, "first start")]


MOVE = """
import asyncio, random, sys
from pathlib import Path
from bonbon.store.database import open_database
from bonbon.errors import Conflict
from bonbon.registry.registry import Registry

async def main(url, root, seed, names):
    rng, done = random.Random(seed), 0
    async with open_database(url) as database:
        registry = Registry(database, Path(root))
        while done < 8:
            champion = await registry.champion()
            name = rng.choice([name for name in names if name != champion])
            try:
                await registry.promote(name, expected=champion, actor=seed)
                done += 1
            except Conflict:
                pass

asyncio.run(main(*sys.argv[1:4], sys.argv[4:]))
"""


async def test_processes_that_move_the_champion_lose_no_move(registry: Registry, database_url: str) -> None:
    """Every promotion replaced the champion of the previous one, so the audit trail is one chain without gaps."""
    await registry.promote(BASE)
    names = [BASE, *[(await approved(registry, weights)).name for weights in range(3)]]
    arguments = [database_url, str(registry.root)]
    processes = [subprocess.Popen([sys.executable, "-c", MOVE, *arguments, str(seed), *names]) for seed in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    moves = [event for event in (await registry.history())[::-1] if event.kind == "promoted"]
    assert len(moves) == 1 + 3 * 8
    assert [move.detail["replaced"] for move in moves] == [None, *(move.version for move in moves[:-1])]
    aliases = await registry.aliases()
    assert (aliases["champion"], aliases["previous"]) == (moves[-1].version, moves[-2].version)
    assert [v.name for v in await registry.list() if v.state is VersionState.PROMOTED] == [moves[-1].version]


async def test_versions_registered_at_once_get_names_of_their_own(
    registry: Registry, database: Database, database_url: str
) -> None:
    made = await asyncio.gather(
        *(
            own_registry(database_url, registry.root, lambda own, weights=weights: adapter(own, weights))
            for weights in range(6)
        )
    )
    assert {version.name[:-9] for version in made} == {f"tiny-bonbon-{number:04d}" for number in range(1, 7)}
    async with database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(versions))).scalar_one() == 7


async def test_judging_and_promoting_at_once_leave_one_story(registry: Registry, database_url: str) -> None:
    """Whichever comes first, a champion never ends up `approved` or `refused`."""
    await registry.promote(BASE)
    for weights in range(6):
        name = (await adapter(registry, weights)).name
        await asyncio.gather(
            own_registry(database_url, registry.root, lambda own, name=name: own.promote(name, force=True)),
            own_registry(database_url, registry.root, lambda own, name=name: own.refuse(name, FAILED)),
            return_exceptions=True,
        )
        version = await registry.get(name)
        assert (await registry.champion(), version.state) == (name, VersionState.PROMOTED)
