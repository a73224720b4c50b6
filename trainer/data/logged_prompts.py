"""The prompts of a snapshot, each with the sampling settings that its candidates were drawn with."""

import json
from typing import TYPE_CHECKING, NamedTuple

import pyarrow.parquet as pq

from bonbon.engines.base import Sampling
from bonbon.pairs.rows import prompt_of
from bonbon.pairs.snapshot import Split
from bonbon.prompt import Prompt

if TYPE_CHECKING:
    from bonbon.pairs.snapshot import Snapshot


class LoggedPrompt(NamedTuple):
    """A prompt, how it was sampled, and what it is for.

    `group_id` is the logged group that has the prompt, and `digest` the prompt's digest in the snapshot.
    """

    prompt: Prompt
    sampling: Sampling
    split: Split
    group_id: str
    digest: str


def logged_prompts(snapshot: "Snapshot", split: Split | None = None) -> list[LoggedPrompt]:
    """Those of a split (None: of all), in the order of the snapshot's rows, repeats included."""
    columns = ["group_id", "prompt_digest", "prompt", "temperature", "max_tokens", "stop", "split"]
    filters = None if split is None else [("split", "=", str(split))]
    rows = pq.read_table(snapshot.groups_file, columns=columns, filters=filters).to_pylist()
    return [
        LoggedPrompt(
            prompt_of(json.loads(row["prompt"])),
            Sampling(max_tokens=row["max_tokens"], temperature=row["temperature"], stop=tuple(row["stop"])),
            Split(row["split"]),
            row["group_id"],
            row["prompt_digest"],
        )
        for row in rows
    ]
