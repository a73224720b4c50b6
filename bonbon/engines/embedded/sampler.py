"""Samples each row's next token from its own distribution."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import torch
from torch import Tensor

from bonbon.engines.engine import Sampling

# random() is at most 1 - 2**-53. Scaled by this factor, a uniform number times a total stays below the total.
BELOW_ONE = 1 - 2**-52


@dataclass(frozen=True, slots=True)
class Choices:
    """The tokens of one step, one per row. `top_ids` and `top_logprobs` are empty when no row needs them."""

    tokens: list[int]
    logprobs: list[float]
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]


class LogitsProcessor(Protocol):
    """Changes the distribution of some rows."""

    def __call__(self, scores: Tensor) -> Tensor:
        """Returns a changed copy of the logits (rows, vocabulary)."""
        ...

    def note(self, tokens: Tensor) -> None:
        """Records the sampled tokens (rows, 1)."""
        ...


class Sampler:
    """A logits processor of transformers that samples the token itself, so that greedy search must pick it.

    Every row inverts its cumulative distribution at one uniform number of its own generator. Rows with different
    temperatures, limits, penalties and seeds therefore share a batch, and a seeded row gets the same tokens on any
    device. Log-probabilities are those of the distribution at the sampling temperature (at temperature 0: at
    temperature 1) before any other change.

    Args:
        samplings: The sampling parameters of each row.
        generators: The random generator of each row.
        device: The device of the logits.
        processors: Change the logits of some rows, one after the other.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        generators: Sequence[Random],
        device: torch.device,
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        self._generators, self._processors = generators, processors
        self._device = device
        temperatures = [sampling.temperature or 1.0 for sampling in samplings]
        self._temperatures = self._column(temperatures) if any(t != 1 for t in temperatures) else None
        greedy = [sampling.temperature == 0 for sampling in samplings]
        self._greedy = torch.tensor(greedy, device=device) if any(greedy) else None
        limited = [row for row, s in enumerate(samplings) if s.top_p < 1 or s.top_k > 0 or s.min_p > 0]
        self._limited = torch.tensor(limited, device=device) if limited else None
        self._top_p = self._column([samplings[row].top_p for row in limited])
        self._top_k = self._column([samplings[row].top_k if samplings[row].top_k > 0 else torch.inf for row in limited])
        self._min_p = self._column([samplings[row].min_p for row in limited])
        self._alternatives = max((sampling.top_logprobs for sampling in samplings), default=0)
        self.last = Choices([], [], [], [])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Overwrites `scores` (rows, vocabulary) with 0 at each row's token and -inf elsewhere."""
        logprobs = self._distribution(scores)
        changed = scores
        for processor in self._processors:
            changed = processor(changed)
        tokens = self._draw(logprobs if changed is scores else self._distribution(changed))
        for processor in self._processors:
            processor.note(tokens)
        chosen = logprobs.gather(1, tokens)
        top_ids: list[list[int]] = []
        top_logprobs: list[list[float]] = []
        if self._alternatives:
            top = logprobs.topk(min(self._alternatives, logprobs.shape[1]), dim=-1)
            top_ids, top_logprobs = top.indices.tolist(), top.values.tolist()
        self.last = Choices(tokens.squeeze(1).tolist(), chosen.squeeze(1).tolist(), top_ids, top_logprobs)
        return scores.fill_(-torch.inf).scatter_(1, tokens, 0.0)

    def _distribution(self, scores: Tensor) -> Tensor:
        """Returns the log-probabilities at each row's temperature, shape (rows, vocabulary)."""
        logits = scores if self._temperatures is None else scores / self._temperatures
        return logits.log_softmax(-1)

    def _draw(self, logprobs: Tensor) -> Tensor:
        """Samples one token id per row, shape (rows, 1)."""
        probabilities = logprobs.exp()
        if self._limited is not None:
            probabilities[self._limited] = self._limit(probabilities[self._limited])
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        uniforms = self._column([generator.random() * BELOW_ONE for generator in self._generators], torch.float64)
        # right=True finds the first token with a greater cumulative probability, never a token of probability 0.
        tokens = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
        tokens = tokens.clamp_(max=logprobs.shape[1] - 1)  # Only a row of NaN exceeds it.
        if self._greedy is not None:
            tokens = torch.where(self._greedy[:, None], logprobs.argmax(-1, keepdim=True), tokens)
        return tokens

    def _limit(self, probabilities: Tensor) -> Tensor:
        """Sets to 0 the tokens below min_p of the most likely one, outside the top_k, or outside the smallest set with
        top_p."""
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered < self._min_p * ordered[:, :1], 0.0)
        ranks = torch.arange(ordered.shape[1], device=self._device)
        ordered = ordered.masked_fill(ranks >= self._top_k, 0.0)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        before = ordered.cumsum(-1) - ordered
        outside = (before >= self._top_p) & (ranks > 0)
        return torch.zeros_like(ordered).scatter(1, order, ordered.masked_fill(outside, 0.0))

    def _column(self, values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device).unsqueeze(1)
