"""KL divergence between versions of one base, from completions that the policy drew.

The Rao-Blackwellised estimator sums, over a completion's positions, the exact divergence of the next token's
distribution given the prefix. It is unbiased, never negative, and has no more variance than k1, the completion's log
ratio (Amini et al., arXiv 2504.10637).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bonbon.engines.base import VersionFiles, VersionKind
from bonbon.engines.policy import load_model
from trainer.evaluation.divergence import Completion, Divergence


class KL:
    """Estimates KL at the sampling temperature, in nats. Models are loaded when it is called and freed after.

    Args:
        versions: every policy that may be named, the base among them.
        temperature: the completions were drawn at.
        batch_size: sequences per forward pass.
        precision: `bf16`, `no` (32-bit), or `auto` (bf16 on a GPU that has it).
    """

    name = "Rao-Blackwellised per-token"

    def __init__(
        self, versions: Sequence[VersionFiles], *, temperature: float, batch_size: int = 32, precision: str = "auto"
    ) -> None:
        self._versions = {version.name: version for version in versions}
        self._base = next(version for version in versions if version.kind is VersionKind.BASE)
        self._temperature, self._batch_size = temperature, batch_size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bf16 = precision == "bf16" or (
            precision == "auto" and self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self._dtype = torch.bfloat16 if bf16 else torch.float32

    @torch.inference_mode()
    def __call__(
        self, policy: str, others: Sequence[str], completions: Sequence[Completion], advance: Callable[[int], None]
    ) -> dict[str, list[Divergence]]:
        """See `DivergenceEstimator`. Raises UserError when a version cannot be loaded."""
        models = _Models(self._base, self._device, self._dtype)
        logits = {name: models.load(self._versions[name]) for name in dict.fromkeys([policy, *others])}
        results: dict[str, list[Divergence]] = {name: [Divergence(0.0, 0.0)] * len(completions) for name in others}
        order = sorted(range(len(completions)), key=lambda i: -len(completions[i].prompt) - len(completions[i].tokens))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            batch = CompletionBatch([completions[row] for row in rows], self._device)
            ours = batch.logits(logits[policy])
            for name in others:
                theirs = ours if name == policy else batch.logits(logits[name])
                for i, row in enumerate(rows):
                    tokens = batch.tokens(i)
                    results[name][row] = divergence(
                        ours[i, : len(tokens)], theirs[i, : len(tokens)], tokens, self._temperature
                    )
            advance(len(rows))
        return results


def divergence(policy: Tensor, other: Tensor, tokens: Tensor, temperature: float) -> Divergence:
    """Both estimates of one completion.

    Args:
        policy: logits that predicted each of `tokens`, [length, vocabulary].
        other: the same under the other policy.
        tokens: as drawn, [length].
    """
    ours = (policy.float() / temperature).log_softmax(-1)
    log_ratio = ours - (other.float() / temperature).log_softmax(-1)
    # A token that the policy never draws adds nothing, however unlikely it is under the other.
    exact = (ours.exp() * log_ratio).masked_fill(ours == -torch.inf, 0.0).sum()
    return Divergence(float(exact), float(log_ratio.gather(-1, tokens[:, None]).sum()))


Logits = Callable[..., Tensor]


class _Models:
    """The base once, its adapters on it, and each full version by itself."""

    def __init__(self, base: VersionFiles, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._model: Any = load_model(base.directory, device, dtype)

    def load(self, version: VersionFiles) -> Logits:
        """What gives the version's logits."""
        if version.kind is VersionKind.FULL:
            own = load_model(version.directory, self._device, self._dtype)
            return lambda **inputs: own(**inputs).logits
        if version.kind is VersionKind.BASE:
            return self._base_logits
        adapter = f"adapter{len(getattr(self._model, 'peft_config', ()))}"
        self._add(version, adapter)
        return lambda **inputs: self._adapted_logits(adapter, inputs)

    def _add(self, version: VersionFiles, adapter: str) -> None:
        from peft import PeftModel

        if isinstance(self._model, PeftModel):
            self._model.load_adapter(str(version.directory), adapter)
        else:
            self._model = PeftModel.from_pretrained(self._model, version.directory, adapter_name=adapter)
        self._model.eval()

    def _base_logits(self, **inputs: Any) -> Tensor:
        if not hasattr(self._model, "disable_adapter"):
            return self._logits(inputs)
        with self._model.disable_adapter():
            return self._logits(inputs)

    def _adapted_logits(self, adapter: str, inputs: dict[str, Any]) -> Tensor:
        self._model.set_adapter(adapter)
        return self._logits(inputs)

    def _logits(self, inputs: dict[str, Any]) -> Tensor:
        logits: Tensor = self._model(**inputs).logits
        return logits


class CompletionBatch:
    """Prompts padded on the left, completions on the right: every completion begins in the same column."""

    def __init__(self, completions: Sequence[Completion], device: torch.device) -> None:
        self._completions = completions
        prompt = max(len(one.prompt) for one in completions)
        self._length = max(len(one.tokens) for one in completions)
        ids = torch.zeros(len(completions), prompt + self._length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, (before, tokens) in enumerate(completions):
            ids[i, prompt - len(before) : prompt + len(tokens)] = torch.tensor([*before, *tokens])
            mask[i, prompt - len(before) : prompt + len(tokens)] = 1
        self._ids, self._mask = ids.to(device), mask.to(device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._first = prompt

    def logits(self, model: Logits) -> Tensor:
        """What predicted each token, [rows, longest completion, vocabulary]."""
        logits = model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            use_cache=False,
            # The largest tensor of all: only the positions that predict a completion's tokens.
            logits_to_keep=self._length + 1,
        )
        return logits[:, -self._length - 1 : -1]

    def tokens(self, row: int) -> Tensor:
        length = len(self._completions[row].tokens)
        return self._ids[row, self._first : self._first + length]
