"""Builds tensors from groups' candidates, and assigns candidates to optimiser steps."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.groups import Groups, Rows, Tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """Candidates as the inputs of one forward pass, with the positions of their tokens' log-probabilities.

    A sequence is a prompt with one candidate or, if `shared`, a prompt with several candidates after it, each of which
    attends to the prompt and to itself only.

    Attributes:
        input_ids: Padded on the right, [sequences, length].
        segments: 0 on prompts, 1 and up on the candidates of a sequence, -1 on padding, [sequences, length].
        position_ids: Each candidate's positions continue after its prompt, [sequences, length].
        first: The first position whose logits are needed.
        predictors: For every candidate's token, the position that predicts it, counted over all sequences from `first`
            on, [tokens].
        targets: The token ids at these predictions, [tokens].
        owners: The position in `candidates` of the candidate that each token belongs to, [tokens].
        candidates: The candidates by their position in the flat arrays of the groups, [candidates].
        temperatures: The sampling temperature of each candidate, [candidates].
        shared: Whether candidates share their prompt's sequence.
    """

    input_ids: Tensor
    segments: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    candidates: Tensor
    temperatures: Tensor
    first: int
    shared: bool

    def to(self, device: torch.device) -> "Batch":
        items = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {k: item.to(device) if isinstance(item, Tensor) else item for k, item in items.items()}
        return Batch(**moved)

    @property
    def tokens(self) -> int:
        """Number of tokens that the model reads, without padding."""
        return int((self.segments >= 0).sum())

    def inputs(self) -> dict[str, Tensor | int | bool]:
        """Returns the arguments of the model's forward pass, whose logits begin at position `first`."""
        inputs: dict[str, Tensor | int | bool] = {
            "input_ids": self.input_ids,
            "use_cache": False,
            # The output layer's tensor is the largest, so only positions that predict a candidate's token are computed.
            "logits_to_keep": self.input_ids.shape[1] - self.first,
        }
        if not self.shared:
            # Padding is on the right, where causal attention never looks, so default positions are correct.
            return inputs | {"attention_mask": (self.segments >= 0).long()}
        return inputs | {"attention_mask": self._attention(), "position_ids": self.position_ids}

    def _attention(self) -> Tensor:
        """Returns the mask of positions that attend to each other, [sequences, 1, length, length]."""
        length = self.input_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.segments.device).tril()
        ours, theirs = self.segments[:, :, None], self.segments[:, None, :]
        allowed = causal & ((ours == theirs) | (theirs == 0))
        # A padding position attends to itself, because attention to nothing would give NaN.
        return (allowed | torch.eye(length, dtype=torch.bool, device=self.segments.device))[:, None]


def make_batch(groups: Groups, chosen: Sequence[Rows], *, share_prompts: bool) -> Batch:
    """Returns candidates as tensors on the CPU.

    Args:
        chosen: Positions in the flat arrays of candidates of one group, for each of the groups.
        share_prompts: Read each group's prompt once instead of once per candidate.
    """
    units = chosen if share_prompts else [candidate[None] for some in chosen for candidate in some]
    sequences = [
        (groups.prompts[int(groups.owners[unit[0]])], [groups.completions[int(candidate)] for candidate in unit])
        for unit in units
    ]
    candidates = np.concatenate(chosen)
    return _lay_out(sequences, candidates, groups.temperatures[groups.owners[candidates]], shared=share_prompts)


def _lay_out(
    sequences: Sequence[tuple[Tokens, list[Tokens]]],
    candidates: Rows,
    temperatures: NDArray[np.float32],
    *,
    shared: bool,
) -> Batch:
    length = max(len(prompt) + sum(map(len, completions)) for prompt, completions in sequences)
    first = min(len(prompt) for prompt, _ in sequences) - 1
    shape = len(sequences), length
    # Padding is masked, so any token id will do.
    ids, positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    predictors: list[Rows] = []
    owners: list[Rows] = []
    for number, (prompt, completions) in enumerate(sequences):
        end = len(prompt)
        ids[number, :end], positions[number, :end], segments[number, :end] = prompt, np.arange(end), 0
        for place, completion in enumerate(completions, start=1):
            here = slice(end, end + len(completion))
            ids[number, here], segments[number, here] = completion, place
            positions[number, here] = np.arange(len(prompt), len(prompt) + len(completion))
            # The prompt's last token predicts the first token of every candidate.
            before = np.concatenate([[len(prompt) - 1], np.arange(end, end + len(completion) - 1)])
            predictors.append(number * (length - first) + before[: len(completion)] - first)
            owners.append(np.full(len(completion), len(owners)))
            end += len(completion)
    return Batch(
        input_ids=torch.from_numpy(ids),
        segments=torch.from_numpy(segments),
        position_ids=torch.from_numpy(positions),
        predictors=torch.from_numpy(np.concatenate(predictors)),
        targets=torch.from_numpy(np.concatenate([one for _, some in sequences for one in some]).astype(np.int64)),
        owners=torch.from_numpy(np.concatenate(owners)),
        candidates=torch.from_numpy(candidates),
        temperatures=torch.from_numpy(temperatures),
        first=first,
        shared=shared,
    )


def epoch_steps(rows: Rows, size: int, *, seed: int, epoch: int) -> list[Rows]:
    """Returns one epoch's optimiser steps of exactly `size` rows, as a function of the arguments, so that a run can
    resume.

    Rows are combined at random. Steps of rows of similar length would reduce the weight of long answers, because the
    optimiser normalises each step. Rows that do not fill a step are left out, and differ in every epoch.
    """
    shuffled = np.random.default_rng([seed, epoch]).permutation(rows)
    return np.split(shuffled[: len(rows) // size * size], max(1, len(rows) // size))


def by_length(lengths: Rows, size: int) -> list[Rows]:
    """Returns all positions of `lengths`, longest first, in batches of at most `size`, which keeps padding small."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + size] for i in range(0, len(order), size)]
