"""Brings a trained policy that went too far back to the KL it is to have, by going part of the way from the reference.

Between the reference's weights and the trained ones the KL grows steadily, while the win rate at a given KL hardly
changes: a policy trained a little too far and taken back is no worse than one that stopped in time (decision 9).
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from bonbon.engines.policy import end_ids
from trainer.bars import Bars
from trainer.data.groups import Groups, Rows
from trainer.evaluation.divergence import Completion
from trainer.evaluation.kl import CompletionBatch, divergence

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

DRAWS = 128
"""A KL of 1.2 nats is then known to a few hundredths."""
TOLERANCE = 0.05
TRIES = 6


class Landed(NamedTuple):
    """`share` of the way from the reference, where the KL from it is `kl` nats, with its standard error."""

    share: float
    kl: float
    standard_error: float


class Landing:
    """Made before the first step, when the policy still is its reference.

    Args:
        model: the policy; which of its weights are trained, their gradients say.
        groups: its held-out prompts are what the KL is measured on.
        size: sequences per forward pass.
    """

    def __init__(
        self, model: "PreTrainedModel | PeftModel", groups: Groups, *, size: int, seed: int, progress: Bars
    ) -> None:
        self._model, self._groups, self._size, self._seed, self._progress = model, groups, size, seed, progress
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._reference = [weight.detach().clone() for weight in self._weights]
        self._ends = end_ids(model)

    @torch.no_grad()
    def __call__(self, kl: float) -> Landed | None:
        """Leave the policy as it is, or bring it back to `kl` nats within 5 %; None when no prompt is held out."""
        rows = self._asked()
        if not len(rows):
            return None
        trained = [weight.detach().clone() for weight in self._weights]
        self._model.eval()
        low, high, share = 0.0, 1.0, 1.0
        with self._progress.task("measuring the KL", TRIES, transient=True) as bar:
            for attempt in range(TRIES):
                found = self._measure(rows, trained, share)
                bar(attempt + 1)
                if (share == 1.0 and found.kl <= kl * (1 + TOLERANCE)) or abs(found.kl - kl) <= kl * TOLERANCE:
                    break
                low, high = (low, share) if found.kl > kl else (share, high)
                # Near the reference the KL grows with the square of the way.
                guess = share * math.sqrt(kl / max(found.kl, 1e-6))
                share = guess if low < guess < high else (low + high) / 2
        self._go(trained, found.share)
        return found

    def _asked(self) -> Rows:
        """Held-out rows of the commonest settings, each as often as `DRAWS` allows."""
        groups, rows = self._groups, self._groups.held_out
        if not len(rows):
            return rows
        kinds = np.stack([groups.temperatures[rows], groups.max_tokens[rows]], axis=1)
        kind, counts = np.unique(kinds, axis=0, return_counts=True)
        rows = rows[(kinds == kind[counts.argmax()]).all(axis=1)]
        chosen = np.random.default_rng(self._seed).permutation(rows)[:DRAWS]
        return np.tile(chosen, DRAWS // len(chosen))

    def _measure(self, rows: Rows, trained: list[Tensor], share: float) -> Landed:
        temperature = float(self._groups.temperatures[rows[0]])
        kls = []
        self._go(trained, share)
        drawn = list(self._draw(rows, temperature))
        for completions in drawn:
            batch = CompletionBatch(completions, self._model.device)
            self._go(trained, share)
            ours = batch.logits(self._logits)
            self._go(trained, 0.0)
            theirs = batch.logits(self._logits)
            for i in range(len(completions)):
                tokens = batch.tokens(i)
                kls.append(divergence(ours[i, : len(tokens)], theirs[i, : len(tokens)], tokens, temperature))
        values = np.array([one.rao_blackwell for one in kls])
        return Landed(share, float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))

    def _draw(self, rows: Rows, temperature: float) -> Iterator[list[Completion]]:
        """One completion a row, in batches."""
        device = self._model.device
        torch.manual_seed(self._seed)
        config = GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=int(self._groups.max_tokens[rows[0]]),
            eos_token_id=sorted(self._ends),
            pad_token_id=0,
        )
        prompts = sorted((tuple(self._groups.prompt(row).tolist()) for row in rows), key=len)
        for start in range(0, len(prompts), self._size):
            some = prompts[start : start + self._size]
            width = max(map(len, some))
            ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in some], device=device)
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in some], device=device)
            answers = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            yield [
                Completion(prompt, self._whole(answer))
                for prompt, answer in zip(some, answers[:, width:].tolist(), strict=True)
            ]

    def _whole(self, tokens: list[int]) -> tuple[int, ...]:
        """Up to the end of the sequence, which is a part of it."""
        end = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens))
        return tuple(tokens[: end + 1])

    def _go(self, trained: list[Tensor], share: float) -> None:
        for weight, reference, target in zip(self._weights, self._reference, trained, strict=True):
            weight.copy_(reference.to(weight.device).lerp(target, share))

    def _logits(self, **inputs: Any) -> Tensor:
        logits: Tensor = self._model(**inputs).logits
        return logits
