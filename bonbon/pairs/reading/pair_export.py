"""Exports preference pairs in TRL's format (explicit prompt, conversational), with additional columns."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from bonbon.errors import UserError
from bonbon.pairs.reading.reader import Pair, Tenants, pairs
from bonbon.store.database import Database

CHUNK = 1000
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("tools", pa.string()),
        ("prompt_format", pa.string()),
        ("group_id", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("version", pa.string()),
        ("n", pa.int32()),
        ("temperature", pa.float64()),
        ("max_tokens", pa.int32()),
        ("reward_name", pa.string()),
        ("reward_version", pa.string()),
        ("chosen_reward", pa.float64()),
        ("rejected_reward", pa.float64()),
        ("chosen_logprob", pa.float64()),
        ("rejected_logprob", pa.float64()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("chosen_token_ids", pa.list_(pa.int32())),
        ("rejected_token_ids", pa.list_(pa.int32())),
    ]
)


async def export(
    database: Database,
    path: Path,
    format: Literal["parquet", "jsonl"],
    *,
    version: str | None = None,
    tenants: Tenants = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Writes every clean pair to `path`, which is replaced once the file is complete. Returns the number of pairs.

    `version` and `tenants` restrict the export. With `tenants`, it includes groups ranked by a tenant's own reward.

    A text prompt becomes one user message and a token-id prompt an empty one: `prompt_format` tells them apart, and
    `prompt_token_ids` holds the tokens that the policy read. Tool calls are written out in the messages' contents.
    `tools` is the JSON text of the offered functions, null when there were none.

    Raises UserError when `path` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Parquet(temporary) if format == "parquet" else _Lines(temporary) as sink:
            chunk: list[dict[str, Any]] = []
            async for pair in pairs(database, version=version, tenants=tenants, own_rewards=tenants is not None):
                chunk.append(_row(pair))
                count += 1
                if len(chunk) == CHUNK:
                    sink.write(chunk)
                    chunk.clear()
                    if progress is not None:
                        progress(count)
            sink.write(chunk)
        if progress is not None:
            progress(count)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; name another file", param="path") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return count


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")

    def write(self, rows: list[dict[str, Any]]) -> None:
        self._writer.write_table(pa.Table.from_pylist(rows, SCHEMA))

    def __enter__(self) -> "_Parquet":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


class _Lines:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._file.write(_line(row))

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def as_json_line(pair: Pair) -> str:
    """Returns one line of a JSON Lines export."""
    return _line(_row(pair))


def _line(row: dict[str, Any]) -> str:
    return json.dumps({**row, "time": row["time"].isoformat()}, ensure_ascii=False) + "\n"


def _row(pair: Pair) -> dict[str, Any]:
    prompt = pair.prompt
    if prompt.messages is not None:
        form, messages = "messages", [dict(message) for message in prompt.plain.messages or ()]
    else:
        form = "text" if prompt.text is not None else "token_ids"
        messages = [{"role": "user", "content": prompt.text or ""}]
    return {
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": prompt.continued + pair.chosen_text}],
        "rejected": [{"role": "assistant", "content": prompt.continued + pair.rejected_text}],
        "tools": prompt.tools,
        "prompt_format": form,
        "group_id": pair.group_id,
        "time": pair.time,
        "version": pair.version,
        "n": pair.n,
        "temperature": pair.temperature,
        "max_tokens": pair.max_tokens,
        "reward_name": pair.reward.name,
        "reward_version": pair.reward.version,
        "chosen_reward": pair.chosen_reward,
        "rejected_reward": pair.rejected_reward,
        "chosen_logprob": pair.chosen_logprob,
        "rejected_logprob": pair.rejected_logprob,
        "prompt_token_ids": list(pair.prompt_token_ids),
        "chosen_token_ids": list(pair.chosen),
        "rejected_token_ids": list(pair.rejected),
    }
