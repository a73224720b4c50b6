"""Tests of `bonbon pairs` on SQLite and PostgreSQL: output, deletions and error messages."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bonbon.cli.pairs_cli import app
from bonbon.pairs.group_records import Unclean
from tests.support.data.groups import scored_group
from tests.support.data.stores import as_json, fill, refusal, run, sqlite

LOGGED = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def test_stats_are_printed_for_people_and_for_programs(database_url: str) -> None:
    groups = [scored_group(number, rewards=(0.0, 2.5), time=LOGGED) for number in range(3)]
    groups.append(scored_group(rewards=(1.0, 1.0), time=LOGGED + timedelta(hours=1), reward_name="a[0]"))
    fill(database_url, groups, hung=True)
    found = as_json(app, "stats", "--database", database_url)
    assert (found["groups"], found["clean"], found["unclean"], found["candidates"]) == (4, 3, {"tied": 1}, 8)
    assert (found["first"], found["last"]) == ("2026-01-02T03:04:00+00:00", "2026-01-02T04:04:00+00:00")
    assert found["comparisons"] == [{"version": "v1", "k": 1, "opponent": "tiny", "win": 4, "tie": 0, "loss": 0}]
    printed = run(app, "stats", "--database", database_url).stdout
    assert "4 groups, 8 candidates, 4 feedback, 2026-01-02 03:04 to 2026-01-02 04:04 UTC" in printed
    lines = [line.split() for line in printed.splitlines()]
    for line in ("clean 3", "unclean tied 1", "version tiny 4", "reward helpful 1 3", "reward a[0] 1 1"):
        assert line.split() in lines
    assert "mean reward of chosen minus rejected, newest 10,000 groups: 2.5" in printed
    assert ["v1", "1", "tiny", "4", "0", "0"] in lines


def test_an_empty_log_has_stats(database_url: str) -> None:
    fill(database_url, [])
    printed = run(app, "stats", "--database", database_url).stdout
    assert printed.splitlines()[0] == "0 groups, 0 candidates, 0 feedback"
    assert "mean reward" not in printed
    assert as_json(app, "stats", "--database", database_url)["mean_margin"] is None


def test_export_writes_what_it_says(database_url: str, tmp_path: Path) -> None:
    fill(database_url, [scored_group(number, version=f"v{number % 2}") for number in range(5)])
    path = tmp_path / "a [bold] :smile: name.parquet"
    result = run(app, "export", path, "--database", database_url)
    assert result.stdout == f"5 pairs written to {path} (parquet)\n"
    assert pq.read_table(path).num_rows == 5
    lines = tmp_path / "pairs.jsonl"
    found = as_json(app, "export", lines, "--format", "jsonl", "--version", "v1", "--database", database_url)
    assert found == {"path": str(lines), "format": "jsonl", "version": "v1", "pairs": 2}
    assert [json.loads(line)["version"] for line in lines.read_text().splitlines()] == ["v1", "v1"]


def test_a_version_that_has_no_pairs_is_named_with_those_that_have(database_url: str, tmp_path: Path) -> None:
    arguments = ("export", tmp_path / "pairs", "--version", "v9", "--database", database_url)
    fill(database_url, [])
    assert refusal(app, *arguments) == "the pair log has no clean group of version 'v9'; it has groups of: none"
    fill(database_url, [scored_group(version="v1"), scored_group(version="v2", unclean=Unclean.SAMPLING)])
    assert refusal(app, *arguments).endswith("it has groups of: v1, v2")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_be_written_names_the_path(tmp_path: Path) -> None:
    fill(sqlite(tmp_path), [scored_group()])
    assert f"cannot write {tmp_path}: Is a directory" in refusal(app, "export", tmp_path, "--data-dir", tmp_path)


def test_an_unknown_format_lists_those_there_are(tmp_path: Path) -> None:
    result = run(app, "export", tmp_path / "pairs", "--format", "csv")
    assert result.exit_code == 2
    assert "'parquet'" in result.stderr
    assert "'jsonl'" in result.stderr


def old_groups() -> list[Any]:
    """Returns groups that are 0 to 5 days old, from two users in turn."""
    now = datetime.now(UTC)
    return [scored_group(i, user=f"user {i % 2}", time=now - timedelta(days=i, hours=1)) for i in range(6)]


@pytest.mark.parametrize(
    ("conditions", "deleted"),
    [
        (("--older-than", "3d"), 3),
        (("--older-than", "74h"), 2),
        (("--older-than", "1w"), 0),
        (("--older-than", "100m"), 5),
        (("--older-than", "0s"), 6),
        (("--user", "user 1"), 3),
        (("--user", "user 1", "--older-than", "2d"), 2),
        (("--user", "nobody"), 0),
    ],
)
def test_purge_deletes_what_meets_the_conditions(database_url: str, conditions: tuple[str, ...], deleted: int) -> None:
    fill(database_url, old_groups(), hung=True)
    found = as_json(app, "purge", *conditions, "--yes", "--database", database_url)
    assert found["deleted"] == deleted
    left = as_json(app, "stats", "--database", database_url)
    rest = 6 - deleted
    assert (left["groups"], left["candidates"], left["feedback"]) == (rest, 4 * rest, rest)
    assert sum(row["win"] for row in left["comparisons"]) == rest


def test_purge_asks_before_it_deletes(database_url: str) -> None:
    fill(database_url, old_groups())
    arguments = ("purge", "--user", "user 1", "--older-than", "2d", "--database", database_url)
    refused = run(app, *arguments, input="n\n")
    assert refused.exit_code == 1
    assert "Permanently delete 2 groups older than 20" in refused.stderr
    assert "UTC of user 'user 1'? [y/N]" in refused.stderr
    assert as_json(app, "stats", "--database", database_url)["groups"] == 6
    agreed = run(app, *arguments, input="y\n")
    assert agreed.exit_code == 0
    assert "2 groups deleted. A running service continues to log; " in agreed.stdout
    again = run(app, *arguments)  # nothing is left to ask about
    assert (again.exit_code, again.stdout.startswith("0 groups deleted")) == (0, True)


@pytest.mark.parametrize("age", ["", "30", "d", "30 d", "-3d", "3y", "1.5d", "99999999999w"])
def test_an_age_that_is_none_shows_how_to_write_one(tmp_path: Path, age: str) -> None:
    fill(sqlite(tmp_path), [scored_group(time=LOGGED)])
    said = refusal(app, "purge", "--older-than", age, "--yes", "--data-dir", tmp_path)
    assert said == f"--older-than is {age!r}: give a number and a unit, such as 90s, 45m, 12h, 30d or 2w"
    assert as_json(app, "stats", "--data-dir", tmp_path)["groups"] == 1


def test_purge_does_not_delete_everything_by_default(tmp_path: Path) -> None:
    fill(sqlite(tmp_path), [scored_group()])
    said = refusal(app, "purge", "--yes", "--data-dir", tmp_path)
    assert said == "name the groups to delete: --older-than 30d, --user NAME, --request-id ID or --tenant NAME"


@pytest.mark.parametrize("arguments", [("stats",), ("export", "pairs"), ("purge", "--user", "ada", "--yes")])
def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    said = refusal(app, *arguments, "--data-dir", tmp_path / "gone")
    assert said.startswith(f"there is no database {tmp_path}/gone/bonbon.db; `bonbon serve` creates it")
    assert not (tmp_path / "gone").exists()
