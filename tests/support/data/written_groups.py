"""Writes Parquet files of groups in the format of snapshots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bonbon.pairs.reading.snapshot import SCHEMA, Split
from trainer.data.groups import Groups

BASE = "tiny"


def group_row(rewards: Sequence[float], **changes: Any) -> dict[str, Any]:
    """Returns a group of the base with these rewards, lowest first, for the prompt "p"."""
    n = len(rewards)
    row: dict[str, Any] = {
        "group_id": "",
        "version": BASE,
        "prompt_digest": "p",
        "prompt": '{"text": "p"}',
        "prompt_token_ids": [2, 5],
        "candidates": [[4 + place, 1] for place in range(n)],
        "rewards": list(rewards),
        "logprobs": [-1.0] * n,
        "n": n,
        "temperature": 1.0,
        "max_tokens": 8,
        "stop": [],
        "split": str(Split.TRAIN),
    }
    return row | changes


def write_groups(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes the file; a group without an id gets its position as id."""
    numbered = [row | {"group_id": row["group_id"] or f"{number:032d}"} for number, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(numbered, SCHEMA), path)
    return path


def groups_of(path: Path, rows: Sequence[dict[str, Any]]) -> Groups:
    """Returns the groups as the trainer reads them from a file at `path`."""
    return Groups.read(write_groups(path, rows), base=BASE)
