"""Estimates the KL divergence between versions of one base from completions that the policy generated.

The Rao-Blackwellised estimator sums, over a completion's positions, the exact divergence of the next token's
distribution given the prefix. It is unbiased, never negative, and has no more variance than k1, the completion's log
ratio (Amini et al., arXiv 2504.10637).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bonbon.engines.embedded.policy import load_model
from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.engines.text.context_length import refuse_long_texts, rotary_limit
from bonbon.engines.text.model_config import read_config
from bonbon.errors import UserError
from trainer.evaluation.divergence import Completion, Divergence

Logits = Callable[..., Tensor]


class KL:
    """Estimates KL(version || base) at each completion's sampling temperature, in nats.

    The computation uses 32-bit floats. In 16 bits, two identical policies appear to be .002 nats per token apart, which
    adds up to the whole divergence of best-of-8 after 600 tokens. The models are loaded on each call and freed
    afterwards.

    Args:
        version: The version that generated the completions.
        batch_size: Sequences per forward pass.
    """

    name = "Rao-Blackwellised per-token"

    def __init__(self, base: VersionFiles, version: VersionFiles, *, batch_size: int = 32) -> None:
        self._base, self._version, self._batch_size = base, version, batch_size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def __call__(self, completions: Sequence[Completion], advance: Callable[[int], None]) -> list[Divergence]:
        """Returns one divergence per completion; see `DivergenceEstimator`.

        Raises:
            UserError: The version cannot be loaded, a completion exceeds the limit of the model's rotary position
                embedding, or a token id is outside the model's vocabulary.
        """
        _refuse_unreadable(completions, self._base.directory)
        results = [Divergence(0.0, 0.0)] * len(completions)
        order = sorted(range(len(completions)), key=lambda i: -len(completions[i].prompt) - len(completions[i].tokens))
        with _full_precision():
            policy, base = self._load()
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                batch = CompletionBatch([completions[row] for row in rows], self._device)
                ours, theirs = batch.logits(policy), batch.logits(base)
                for i, row in enumerate(rows):
                    tokens = batch.tokens(i)
                    some = slice(len(tokens))
                    results[row] = divergence(ours[i, some], theirs[i, some], tokens, completions[row].temperature)
                advance(len(rows))
        return results

    def _load(self) -> tuple[Logits, Logits]:
        """Returns the functions that compute the logits of the version and of the base."""
        base: Any = load_model(self._base.directory, self._device, torch.float32)
        if self._version.kind is VersionKind.BASE:
            return (lambda **inputs: base(**inputs).logits,) * 2
        if self._version.kind is VersionKind.FULL:
            own: Any = load_model(self._version.directory, self._device, torch.float32)
            return lambda **inputs: own(**inputs).logits, lambda **inputs: base(**inputs).logits
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(base, self._version.directory).eval()

        def without(**inputs: Any) -> Tensor:
            with adapted.disable_adapter():
                logits: Tensor = adapted(**inputs).logits
            return logits

        return lambda **inputs: adapted(**inputs).logits, without


def _refuse_unreadable(completions: Sequence[Completion], base: Path) -> None:
    config = read_config(base)
    lengths = [len(one.prompt) + len(one.tokens) for one in completions]
    refuse_long_texts(lengths, rotary_limit(config), "completions", "evaluate again")
    highest = max((token for one in completions for token in (*one.prompt, *one.tokens)), default=0)
    if highest >= config.vocab_size:
        raise UserError(
            f"a completion has the token id {highest}, and the model has {config.vocab_size} token ids: serve it with "
            "the tokenizer that belongs to it, and evaluate again",
            param="model",
        )


@contextmanager
def _full_precision() -> Iterator[None]:
    """Runs matrix products on a GPU in full 32-bit precision inside the block, even if TF32 was enabled."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def divergence(policy: Tensor, other: Tensor, tokens: Tensor, temperature: float) -> Divergence:
    """Returns both estimates for one completion.

    Args:
        policy: Logits that predicted each of `tokens`, [length, vocabulary].
        other: The logits of the other policy, [length, vocabulary].
        tokens: The sampled token ids, [length].
    """
    ours = (policy.float() / temperature).log_softmax(-1)
    log_ratio = ours - (other.float() / temperature).log_softmax(-1)
    # A token of probability zero under the policy contributes nothing, however unlikely it is under the other one.
    exact = (ours.exp() * log_ratio).masked_fill(ours == -torch.inf, 0.0).sum()
    return Divergence(float(exact), float(log_ratio.gather(-1, tokens[:, None]).sum()))


class CompletionBatch:
    """Prompts padded on the left and completions on the right, so that all completions begin in the same column."""

    def __init__(self, completions: Sequence[Completion], device: torch.device) -> None:
        self._completions = completions
        prompt = max(len(one.prompt) for one in completions)
        self._length = max(len(one.tokens) for one in completions)
        ids = torch.zeros(len(completions), prompt + self._length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, (before, tokens, _) in enumerate(completions):
            ids[i, prompt - len(before) : prompt + len(tokens)] = torch.tensor([*before, *tokens])
            mask[i, prompt - len(before) : prompt + len(tokens)] = 1
        self._ids, self._mask = ids.to(device), mask.to(device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._first = prompt

    def logits(self, model: Logits) -> Tensor:
        """Returns the logits that predicted each token, [rows, longest completion, vocabulary]."""
        logits = model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            use_cache=False,
            # This is the largest tensor, so only the positions that predict a completion's tokens are computed.
            logits_to_keep=self._length + 1,
        )
        return logits[:, -self._length - 1 : -1]

    def tokens(self, row: int) -> Tensor:
        length = len(self._completions[row].tokens)
        return self._ids[row, self._first : self._first + length]
