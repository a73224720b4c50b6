"""Tests of exports: TRL and pyarrow read what was drawn, and a file is complete or unchanged."""

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bonbon.errors import StoreError, UserError
from bonbon.pairs.group_records import Group, Unclean
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.pair_export import SCHEMA, export
from bonbon.prompt import Prompt
from bonbon.store.database import Database
from bonbon.store.tables import candidates
from tests.support.data.groups import scored_group

Format = Literal["parquet", "jsonl"]


@pytest.fixture(params=["parquet", "jsonl"])
def format(request: pytest.FixtureRequest) -> Format:
    chosen: Format = request.param
    return chosen


def read(path: Path, format: Format) -> list[dict[str, Any]]:
    if format == "parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [row | {"time": datetime.fromisoformat(row["time"])} for row in rows]


def expected(group: Group, prompt: list[dict[str, str]], prompt_format: str) -> dict[str, Any]:
    best, worst = group.best, group.worst
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": best.text}],
        "rejected": [{"role": "assistant", "content": worst.text}],
        "tools": None,
        "prompt_format": prompt_format,
        "group_id": group.id,
        "time": group.time,
        "version": group.version,
        "n": group.n,
        "temperature": group.sampling.temperature,
        "max_tokens": group.sampling.max_tokens,
        "reward_name": group.reward_name,
        "reward_version": group.reward_version,
        "chosen_reward": best.reward,
        "rejected_reward": worst.reward,
        "chosen_logprob": best.logprob,
        "rejected_logprob": worst.logprob,
        "prompt_token_ids": list(group.prompt_token_ids),
        "chosen_token_ids": list(best.token_ids),
        "rejected_token_ids": list(worst.token_ids),
    }


async def test_every_clean_pair_is_written_as_trl_reads_it(
    database: Database, log: PairLog, tmp_path: Path, format: Format
) -> None:
    """Any form of prompt becomes an explicit prompt with conversational sides; numbers and tokens are exact."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "naïve 日本 😀\u2028"}]
    prompts = {
        "messages": (Prompt(messages=tuple(messages)), messages),  # type: ignore[arg-type]
        "text": (Prompt(text="Once upon"), [{"role": "user", "content": "Once upon"}]),
        "token_ids": (Prompt(token_ids=(5, 6)), [{"role": "user", "content": ""}]),
    }
    wanted = []
    for number, (form, (prompt, shown)) in enumerate(prompts.items()):
        group = scored_group(number, prompt=prompt)
        await log.append(group)
        wanted.append(expected(group, shown, form))
    await log.append(scored_group(unclean=Unclean.SAMPLING))
    path = tmp_path / "new" / f"pairs.{format}"
    assert await export(database, path, format) == 3
    assert read(path, format) == wanted
    assert format == "jsonl" or pq.read_schema(path).equals(SCHEMA)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


async def test_both_formats_say_the_same(database: Database, log: PairLog, tmp_path: Path) -> None:
    groups = [scored_group(number, n=number + 2) for number in range(5)]
    for group in groups:
        await log.append(group)
    formats: tuple[Format, ...] = ("parquet", "jsonl")
    for form in formats:
        await export(database, tmp_path / form, form)
    lines = read(tmp_path / "jsonl", "jsonl")
    assert lines == read(tmp_path / "parquet", "parquet")
    assert lines == [
        expected(group, [{"role": "user", "content": f"question {number}"}], "messages")
        for number, group in enumerate(groups)
    ]
    assert pa.Table.from_pylist(lines, SCHEMA).equals(pq.read_table(tmp_path / "parquet"))


async def test_one_version_can_be_chosen_and_progress_is_told(
    database: Database, log: PairLog, tmp_path: Path, format: Format
) -> None:
    """There are more pairs than fit one chunk."""
    groups = [scored_group(number, n=2, version="v1" if number % 3 else "tiny") for number in range(1800)]
    await asyncio.gather(*(log.append(group) for group in groups))
    told: list[int] = []
    assert await export(database, tmp_path / "pairs", format, version="v1", progress=told.append) == 1200
    assert told == [1000, 1200]
    assert [row["group_id"] for row in read(tmp_path / "pairs", format)] == [
        group.id for group in groups if group.version == "v1"
    ]


async def test_an_empty_log_makes_an_empty_file(database: Database, tmp_path: Path, format: Format) -> None:
    assert await export(database, tmp_path / "pairs", format) == 0
    assert read(tmp_path / "pairs", format) == []


async def test_an_export_that_fails_leaves_the_file_before_it(
    database: Database, log: PairLog, tmp_path: Path, format: Format
) -> None:
    await log.append(scored_group())
    await export(database, tmp_path / "pairs", format)
    before = (tmp_path / "pairs").read_bytes()
    async with database.write() as connection:
        await connection.run_sync(candidates.drop)
    with pytest.raises(StoreError):
        await export(database, tmp_path / "pairs", format)
    assert (tmp_path / "pairs").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["pairs"]


async def test_a_path_that_cannot_be_written_is_named(database: Database, tmp_path: Path, format: Format) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "directory", tmp_path / "file" / "pairs", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"cannot write .*; name another file") as refusal:
            await export(database, path, format)
        assert str(path) in str(refusal.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory", "file"]
