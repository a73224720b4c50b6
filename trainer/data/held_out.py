"""The held-out part of a snapshot: prompts that were never trained on, and how they were sampled."""

import json
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pyarrow.parquet as pq

from bonbon.engines.base import Sampling
from bonbon.pairs.rows import prompt_of
from bonbon.prompt import Prompt

if TYPE_CHECKING:
    from bonbon.pairs.snapshot import Snapshot


class HeldOut(NamedTuple):
    """The held-out prompts in the log's order, repeats included, and the sampling that most of their groups had."""

    prompts: list[Prompt]
    sampling: Sampling


def read_held_out(snapshot: "Snapshot") -> HeldOut:
    """Reads only what it needs of the snapshot's pairs."""
    columns = ["prompt", "temperature", "max_tokens"]
    rows = pq.read_table(snapshot.groups_file, columns=columns, filters=[("held_out", "=", True)]).to_pylist()
    prompts = [prompt_of(json.loads(row["prompt"])) for row in rows]
    settings = Counter((row["temperature"], row["max_tokens"]) for row in rows)
    if not settings:
        return HeldOut([], Sampling())
    # Equally frequent ones must not be chosen between by chance.
    temperature, max_tokens = max(settings, key=lambda setting: (settings[setting], setting))
    return HeldOut(prompts, Sampling(max_tokens=max_tokens, temperature=temperature))
