"""A snapshot's pairs: checked, batched by length, and made into tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonbon.errors import UserError

Rows = NDArray[np.int64]

COLUMNS = [
    "group_id",
    "prompt_token_ids",
    "chosen",
    "rejected",
    "chosen_reward",
    "rejected_reward",
    "chosen_logprob",
    "rejected_logprob",
    "n",
    "temperature",
    "held_out",
]
BATCHES_PER_BUCKET = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs as right-padded tensors: every chosen sequence, then every rejected one, so 2 * pairs rows.

    `input_ids` and `attention_mask` are [2 * pairs, length]; `prompt_lengths` and `temperatures` [2 * pairs];
    `rows` (numbers of the pairs in the snapshot) and `n` are [pairs].
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt_lengths: Tensor
    temperatures: Tensor
    rows: Tensor
    n: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            *(getattr(self, name).to(device) for name in self.__dataclass_fields__)  # non_blocking needs pinned memory
        )


class Pairs:
    """The pairs of a snapshot, in its order; a row's number is its place there.

    Args:
        path: the snapshot's `pairs.parquet`.

    Attributes:
        train: rows to train on.
        held_out: rows whose prompts are held out.
        lengths: tokens of prompt and longer completion, [rows].
        tokens: tokens of the chosen and of the rejected completion, [rows, 2].
        logprobs: of chosen and rejected under the sampler, as it logged them, [rows, 2].

    Raises:
        UserError: a row is no clean pair; the message says which group and why.
    """

    def __init__(self, path: Path) -> None:
        table = pq.read_table(path, columns=COLUMNS).combine_chunks()
        _check(table)
        self.n = _array(table, "n")
        self.temperatures = _array(table, "temperature").astype(np.float32)
        self.logprobs = np.stack([_array(table, f"{side}_logprob") for side in ("chosen", "rejected")], axis=1)
        self._prompts, self._chosen, self._rejected = (
            _Ragged(table.column(name).combine_chunks()) for name in ("prompt_token_ids", "chosen", "rejected")
        )
        self.tokens = np.stack([self._chosen.lengths, self._rejected.lengths], axis=1)
        self.lengths = self._prompts.lengths + self.tokens.max(axis=1)
        held_out = _array(table, "held_out").astype(bool)
        self.train, self.held_out = np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def __len__(self) -> int:
        return len(self.n)

    def batch(self, rows: Sequence[int] | Rows) -> Batch:
        """These rows as tensors on the CPU."""
        prompts = [self._prompts[row] for row in rows]
        sequences = [
            np.concatenate([prompt, side[row]])
            for side in (self._chosen, self._rejected)
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        # Padding is masked and to the right, where causal attention never looks: any token id will do.
        input_ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for i, sequence in enumerate(sequences):
            input_ids[i, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
            attention_mask[i, : len(sequence)] = 1
        index = np.asarray(rows, dtype=np.int64)
        return Batch(
            input_ids,
            attention_mask,
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts] * 2),
            temperatures=torch.from_numpy(np.tile(self.temperatures[index], 2)),
            rows=torch.from_numpy(index),
            n=torch.from_numpy(self.n[index].astype(np.int64)),
        )


def epoch_batches(rows: Rows, lengths: Rows, size: int, *, seed: int, epoch: int) -> list[Rows]:
    """One epoch's batches of exactly `size` rows: a function of its arguments alone, so that a run can be resumed.

    Sequences of like length share a batch (less padding), except that the shuffle decides which of them meet. What
    fills no batch is left out; with each epoch's own shuffle these are other rows every time.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(rows)[: len(rows) // size * size]
    batches: list[Rows] = []
    for start in range(0, len(shuffled), size * BATCHES_PER_BUCKET):
        bucket = shuffled[start : start + size * BATCHES_PER_BUCKET]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += np.split(bucket, len(bucket) // size)
    return [batches[i] for i in rng.permutation(len(batches))]


def length_batches(rows: Rows, lengths: Rows, size: int) -> list[Rows]:
    """All rows once, longest first, in batches of at most `size`: for passes that do not train."""
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


class _Ragged:
    """A column of lists of token ids, as one flat array."""

    def __init__(self, column: pa.ListArray) -> None:
        self._offsets = column.offsets.to_numpy()
        self._values = column.values.to_numpy()
        self.lengths: Rows = np.diff(self._offsets).astype(np.int64)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        values: NDArray[np.int32] = self._values[self._offsets[row] : self._offsets[row + 1]]
        return values


def _array(table: pa.Table, name: str) -> NDArray[np.float64]:
    array: NDArray[np.float64] = table.column(name).to_numpy()
    return array


def _check(table: pa.Table) -> None:
    chosen, rejected = _array(table, "chosen_reward"), _array(table, "rejected_reward")
    logprobs = np.stack([_array(table, "chosen_logprob"), _array(table, "rejected_logprob")])
    prompt_lengths = pc.list_value_length(table.column("prompt_token_ids")).to_numpy()
    for wrong, why in (
        (_array(table, "n") < 2, "has fewer than two candidates"),
        (~(np.isfinite(chosen) & np.isfinite(rejected)), "has a reward that is not finite"),
        (chosen <= rejected, "is tied: its chosen reward is not above its rejected one"),
        (~np.isfinite(logprobs).all(axis=0), "has a log-probability that is not finite"),
        (_array(table, "temperature") <= 0, "was drawn greedily, so its candidates are no draws of the policy"),
        (prompt_lengths == 0, "has an empty prompt"),
    ):
        if wrong.any():
            group = table.column("group_id")[int(np.flatnonzero(wrong)[0])].as_py()
            raise UserError(
                f"{int(wrong.sum())} of the snapshot's {wrong.size} pairs must not be trained on: group {group} {why}; "
                "take the snapshot anew from the pair log, which leaves such groups out"
            )
