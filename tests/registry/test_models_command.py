"""Tests of `bonbon models` on SQLite and PostgreSQL: output, promotions and error messages."""

import asyncio
import json
from pathlib import Path

import pytest

from bonbon.cli.models_cli import app
from bonbon.pairs.live.savings import TokenCounts, add_savings
from bonbon.registry.registry import Registry
from bonbon.store.database import open_database
from tests.support.data.stores import as_json, refusal, run, sqlite
from tests.support.service.running_service import new_version, version_name

BASE = "tiny"
FIRST, SECOND, THIRD = (version_name(weights + 1, weights, base=BASE) for weights in range(3))


def fill(url: str, directory: Path) -> None:
    """Makes the base champion; the first version is approved, the second refused and the third not judged."""

    async def register() -> None:
        async with open_database(url) as database:
            registry = Registry(database, directory / "versions")
            await registry.register_base(BASE, None)
            await registry.promote(BASE, actor="first start")
            for weights in range(3):
                await new_version(registry, weights, base=BASE)
            await registry.record_evaluation(FIRST, {"win_rate": 0.75})
            await registry.approve(FIRST, {"passed": True, "reasons": [], "k": 3, "saved": 0.6})
            await add_savings(database, FIRST, 8, TokenCounts(10, 200, 5, 50, 500))
            await registry.refuse(SECOND, {"passed": False, "reasons": ["win rate [0.4, 0.5] is too low"]})

    asyncio.run(register())


@pytest.fixture
def url(database_url: str, tmp_path: Path) -> str:
    fill(database_url, tmp_path)
    return database_url


def test_the_list_shows_versions_with_their_states_and_aliases(url: str) -> None:
    *table, waits_for = run(app, "list", "--database", url).stdout.splitlines()
    lines = [line.split() for line in table]
    assert lines[0] == ["version", "state", "alias", "k", "saved", "parent", "created", "(UTC)"]
    assert [line[:-2] for line in lines[1:]] == [
        [BASE, "promoted", "champion"],
        [FIRST, "approved", "challenger", "3", "75%", BASE],
        [SECOND, "refused", BASE],
        [THIRD, "registered", BASE],
    ]
    assert waits_for == f"The next round waits for 1000 more clean groups of {BASE} (0 of 1000)."
    found = as_json(app, "list", "--database", url)
    assert found["aliases"] == {"champion": BASE, "challenger": FIRST}
    assert [version["name"] for version in found["versions"]] == [BASE, FIRST, SECOND, THIRD]
    assert (found["versions"][1]["k"], found["versions"][1]["saved_share"]) == (3, 0.75)
    assert found["next_round"] == waits_for


def test_the_list_shows_a_champion_that_answers_with_best_of_n_again(url: str, tmp_path: Path) -> None:
    async def fall() -> None:
        async with open_database(url) as database:
            registry = Registry(database, tmp_path / "versions")
            await registry.promote(FIRST, actor="somebody")
            await registry.promote(THIRD, actor="somebody", force=True)
            await registry.fall_back(THIRD, FIRST, actor="floor", reason="lost")

    asyncio.run(fall())
    lines = [line.split() for line in run(app, "list", "--database", url).stdout.splitlines()]
    assert lines[2][:-2] == [FIRST, "promoted", "best_of_n,", "champion", "n", "75%", BASE]


def test_a_version_is_shown_with_all_that_is_known(url: str) -> None:
    found = as_json(app, "show", FIRST, "--database", url)
    assert (found["state"], found["aliases"], found["parent"]) == ("approved", ["challenger"], BASE)
    assert (found["evaluation"], found["training"]) == ({"win_rate": 0.75}, {"seed": 0})
    assert [event["kind"] for event in found["history"]] == ["approved", "evaluated", "registered"]
    printed = run(app, "show", FIRST, "--full", "--database", url).stdout
    for word in (FIRST, found["digest"], found["directory"], "challenger", '"win_rate": 0.75', "history, newest first"):
        assert word in printed
    kinds = [line.split()[2:5] for line in printed.splitlines()[-3:]]
    assert kinds == [["approved", "by", "gate"], ["evaluated", "by", "trainer"], ["registered", "by", "trainer"]]


MEASURED = {
    "n": 8, "served": BASE, "served_k": 8, "kl_estimator": "Rao-Blackwellised per-token",
    "win_rate_shares": [0.5] * 400,
    "best_of_k": [
        {"k": k, "win_rate": {"value": 0.6 + 0.1 * k, "low": 0.6, "high": None}, "win_rate_served": {"value": 0.58}}
        for k in range(1, 9)
    ],
} | {
    name: {"value": value, "low": value - 0.05, "high": value + 0.05, "count": 100, "clusters": 50}
    for name, value in (("win_rate", 0.75), ("best_of_n_win_rate", 0.89), ("kl", 0.72), ("kl_k1", 0.57), ("gain", 1.5))
}  # fmt: skip


@pytest.mark.parametrize("columns", [80, 200])
def test_a_version_is_shown_on_one_screen(url: str, tmp_path: Path, columns: int) -> None:
    async def evaluate() -> None:
        async with open_database(url) as database:
            registry = Registry(database, tmp_path / "versions")
            for _ in range(20):
                await registry.record_evaluation(FIRST, MEASURED)

    asyncio.run(evaluate())
    lines = run(app, "show", FIRST, "--database", url, columns=columns).stdout.splitlines()
    assert len(lines) < 40
    assert all(len(line) <= columns for line in lines)
    words = [" ".join(line.split()) for line in lines]
    assert "answers with the best of 3 draws" in words
    assert "saves 60% of the tokens of what was served before it" in words
    assert "win rate of one draw 0.750 0.700 to 0.800 the base" in words
    assert f"win rate of best-of-3 0.580 best-of-8 of {BASE}" in words
    assert "KL from the base, nats 0.720 0.670 to 0.770 Rao-Blackwellised per-token" in words
    assert "KL from the base, nats 0.570 0.520 to 0.620 k1, the mean log ratio" in words
    assert "--full shows all measurements, and 18 earlier lines of the history." in words
    full = run(app, "show", FIRST, "--full", "--database", url, columns=columns).stdout
    assert "win_rate_shares" in full
    assert full.count("evaluated by trainer") == 21


def test_a_verdict_is_printed_as_it_is(url: str) -> None:
    assert "win rate [0.4, 0.5] is too low" in run(app, "show", SECOND, "--database", url).stdout


def test_a_promotion_and_its_rollbacks(url: str) -> None:
    printed = run(app, "promote", FIRST, "--expected", BASE, "--database", url).stdout
    assert printed.startswith(f"{FIRST} is the champion (before: {BASE})\n")
    assert f"If a check fails, {BASE} continues to answer" in printed
    again = run(app, "promote", FIRST, "--database", url).stdout
    assert again == f"{FIRST} is already the champion; nothing changed\n"
    assert as_json(app, "rollback", "--database", url) == {"champion": BASE, "before": FIRST}
    assert run(app, "rollback", "--database", url).stdout.startswith(f"{FIRST} is the champion (before: {BASE})")
    found = as_json(app, "list", "--database", url)
    assert found["aliases"] == {"champion": FIRST, "previous": BASE}
    history = as_json(app, "show", FIRST, "--database", url)["history"]
    assert [(event["kind"], event["actor"]) for event in history[:2]] == [("rolled_back", "cli"), ("promoted", "cli")]


@pytest.mark.parametrize(("name", "state"), [(SECOND, "refused"), (THIRD, "registered")])
def test_what_the_gate_has_not_approved_needs_force(url: str, name: str, state: str) -> None:
    said = refusal(app, "promote", name, "--database", url)
    assert said == f"{name} is {state}, not approved; `bonbon models show {name}` says why, --force overrides"
    assert as_json(app, "promote", name, "--force", "--database", url) == {"champion": name, "before": BASE}
    assert as_json(app, "show", name, "--database", url)["history"][0]["detail"]["forced"] is True


def test_another_champion_than_expected_changes_nothing(url: str) -> None:
    said = refusal(app, "promote", FIRST, "--expected", SECOND, "--database", url)
    assert said == f"the champion is '{BASE}', not '{SECOND}': another promotion came first"
    assert as_json(app, "list", "--database", url)["aliases"]["champion"] == BASE


def test_there_may_be_nothing_to_roll_back_to(url: str) -> None:
    said = refusal(app, "rollback", "--database", url)
    assert said == f"there is no previous version to roll back to; the champion is '{BASE}'"


@pytest.mark.parametrize("command", ["show", "promote"])
@pytest.mark.parametrize("name", ["gone", "[/bold]"])
def test_a_version_that_is_not_there_is_named(url: str, command: str, name: str) -> None:
    said = refusal(app, command, name, "--database", url)
    assert said == f"there is no version {name!r}; `bonbon models list` shows those there are"


def test_the_first_promotion_of_all_has_none_before_it(tmp_path: Path) -> None:
    async def register() -> None:
        async with open_database(sqlite(tmp_path)) as database:
            await Registry(database, tmp_path / "versions").register_base(BASE, None)

    asyncio.run(register())
    printed = run(app, "promote", BASE, "--data-dir", tmp_path).stdout
    assert printed.startswith(f"{BASE} is the champion (before: none)")
    assert "If a check fails, the base continues to answer" in printed


def test_names_stay_in_one_line_on_a_terminal_of_80_columns(url: str) -> None:
    printed = run(app, "list", "--database", url, columns=80).stdout.splitlines()
    assert all(len(line) <= 80 for line in printed)
    for number, name in enumerate((BASE, FIRST, SECOND, THIRD), start=1):
        assert printed[number].split()[0] == name


def test_a_narrow_terminal_cuts_nothing_off(url: str) -> None:
    printed = run(app, "list", "--database", url, columns=60).stdout
    assert "…" not in printed
    assert all(len(line) <= 60 for line in printed.splitlines())
    assert printed.replace("\n", "").count("0003") == 1


@pytest.mark.parametrize("arguments", [("list",), ("show", "tiny"), ("promote", "tiny"), ("rollback",)])
def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    said = refusal(app, *arguments, "--data-dir", tmp_path / "gone")
    assert said.startswith(f"there is no database {tmp_path}/gone/bonbon.db")
    assert not (tmp_path / "gone").exists()


def test_json_is_one_object_alone(url: str) -> None:
    result = run(app, "promote", FIRST, "--json", "--database", url)
    assert json.loads(result.stdout) == {"champion": FIRST, "before": BASE}
    assert result.stderr == ""
