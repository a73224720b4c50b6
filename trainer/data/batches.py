"""A snapshot's groups as pairs: the best candidate and one below it, checked, batched by length, made into tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.groups import Groups, Rows

Partner = Literal["random", "worst"]

BATCHES_PER_BUCKET = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs as right-padded tensors: every chosen sequence, then every rejected one, so 2 * pairs rows.

    `input_ids` and `attention_mask` are [2 * pairs, length]; `prompt_lengths` and `temperatures` [2 * pairs];
    `rows` (numbers of the groups in the snapshot) [pairs], and `places` (of the two among their group's candidates,
    worst first, from 0) [pairs, 2].
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompt_lengths: Tensor
    temperatures: Tensor
    rows: Tensor
    places: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            *(getattr(self, name).to(device) for name in self.__dataclass_fields__)  # non_blocking needs pinned memory
        )


def places(groups: Groups, rows: Rows, partner: Partner, *, seed: int, step: int) -> Rows:
    """Places of chosen and rejected among the candidates of each row, [rows, 2].

    Chosen is the best. `random` draws the rejected from all candidates strictly below it, anew for every step, as a
    function of seed, step and row: neither resuming a run nor splitting a batch changes it. `worst` takes the worst.
    """
    below = groups.below[rows]
    if partner == "worst":
        rejected = np.zeros(len(rows), dtype=np.int64)
    else:
        rejected = (np.random.default_rng([seed, step]).random(len(groups))[rows] * below).astype(np.int64)
    return np.stack([groups.n[rows] - 1, rejected], axis=1)


def make_batch(groups: Groups, rows: Rows, places: Rows) -> Batch:
    """These groups' candidates at `places`, [rows, 2], as tensors on the CPU."""
    sequences = [
        groups.sequence(row, place) for side in (0, 1) for row, place in zip(rows, places[:, side], strict=True)
    ]
    return Batch(
        *padded(sequences),
        prompt_lengths=torch.from_numpy(np.tile(groups.prompt_lengths[rows], 2)),
        temperatures=torch.from_numpy(np.tile(groups.temperatures[rows], 2)),
        rows=torch.from_numpy(rows),
        places=torch.from_numpy(places),
    )


def padded(sequences: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, padded on the right, [sequences, longest] each."""
    # Padding is masked and to the right, where causal attention never looks: any token id will do.
    input_ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for i, sequence in enumerate(sequences):
        input_ids[i, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        attention_mask[i, : len(sequence)] = 1
    return input_ids, attention_mask


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
