"""The prompts of a snapshot, each with the sampling settings of its candidates."""

import json
from typing import TYPE_CHECKING, NamedTuple

import pyarrow.parquet as pq
import structlog

from bonbon.engines.engine import Sampling
from bonbon.pairs.group_rows import prompt_of
from bonbon.pairs.reading.snapshot import Split
from bonbon.prompt import Prompt

if TYPE_CHECKING:
    from bonbon.pairs.reading.snapshot import Snapshot

log = structlog.get_logger(__name__)


class LoggedPrompt(NamedTuple):
    """A prompt, its sampling settings and its split.

    `group_id` is the logged group of the prompt, and `digest` the prompt's digest in the snapshot.
    """

    prompt: Prompt
    sampling: Sampling
    split: Split
    group_id: str
    digest: str


def logged_prompts(
    snapshot: "Snapshot", split: Split | None = None, *, vocabulary: int | None = None
) -> list[LoggedPrompt]:
    """Returns the prompts of a split (None: of all splits), in the order of the snapshot's rows, with repeats.

    Prompts with token ids of `vocabulary` or above are left out, with a warning.
    """
    columns = ["group_id", "prompt_digest", "prompt", "temperature", "max_tokens", "stop", "split"]
    columns += [] if vocabulary is None else ["prompt_token_ids"]
    filters = None if split is None else [("split", "=", str(split))]
    rows = pq.read_table(snapshot.groups_file, columns=columns, filters=filters).to_pylist()
    if vocabulary is not None:
        strange = [row for row in rows if max(row["prompt_token_ids"]) >= vocabulary]
        rows = [row for row in rows if max(row["prompt_token_ids"]) < vocabulary]
        if strange:
            log.warning(
                "prompts are left out: they have token ids that the model does not know",
                groups=[row["group_id"] for row in strange],
                token_ids_of_model=vocabulary,
            )
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
