"""Applies penalties and biases to the logits of the rows that use them."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bonbon.engines.engine import Sampling


class History(NamedTuple):
    """The tokens of a row so far."""

    prompt: Sequence[int]
    sampled: Sequence[int]


class LogitsProcessors:
    """Changes logits as `Sampling` describes; rows that use none of these fields stay unchanged.

    Args:
        samplings: The sampling parameters of each row.
        histories: The tokens of each row so far.
        end_ids: The end tokens, which `min_tokens` excludes unless `ignore_eos` lets a row continue after them.
        vocabulary: The number of tokens in the logits.
        device: The device of the logits.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        histories: Sequence[History],
        end_ids: Collection[int],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        rows = [row for row, sampling in enumerate(samplings) if sampling.changes_logits]
        asking = [samplings[row] for row in rows]
        self._rows = torch.tensor(rows, device=device)
        self._repetition = _column([sampling.repetition_penalty for sampling in asking], device)
        self._frequency = _column([sampling.frequency_penalty for sampling in asking], device)
        self._presence = _column([sampling.presence_penalty for sampling in asking], device)
        self._bias = torch.zeros(len(rows), vocabulary, device=device)
        self._counts = torch.zeros(len(rows), vocabulary, device=device)
        self._in_prompt = torch.zeros(len(rows), vocabulary, dtype=torch.bool, device=device)
        for at, sampling in enumerate(asking):
            history = histories[rows[at]]
            self._in_prompt[at, torch.tensor(history.prompt, dtype=torch.long, device=device)] = True
            sampled = torch.tensor(history.sampled, dtype=torch.long, device=device)
            self._counts[at] += torch.bincount(sampled, minlength=vocabulary)
            for token, bias in sampling.logit_bias:
                self._bias[at, token] = bias
        missing = [
            0 if sampling.ignore_eos else sampling.min_tokens - len(histories[row].sampled)
            for row, sampling in zip(rows, asking, strict=True)
        ]
        self._missing = torch.tensor(missing, device=device)
        ends = sorted(token for token in end_ids if token < vocabulary)
        self._ends = torch.tensor(ends, dtype=torch.long, device=device)

    def __call__(self, scores: Tensor) -> Tensor:
        """Returns a copy of the logits (rows, vocabulary) in which the rows that use these fields are changed."""
        logits = scores[self._rows] + self._bias
        too_early = self._missing > 0
        logits[:, self._ends] = logits[:, self._ends].masked_fill(too_early[:, None], -torch.inf)
        penalised = torch.where(logits > 0, logits / self._repetition, logits * self._repetition)
        logits = torch.where(self._in_prompt | (self._counts > 0), penalised, logits)
        logits -= self._frequency * self._counts + self._presence * (self._counts > 0)
        return scores.index_copy(0, self._rows, logits)

    def note(self, tokens: Tensor) -> None:
        """Counts the sampled tokens (rows, 1)."""
        own = tokens[self._rows]
        self._counts.scatter_add_(1, own, torch.ones_like(own, dtype=self._counts.dtype))
        self._missing -= 1


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)
