"""Trains a policy by optimiser steps on groups, and computes log-probabilities under it and under the base."""

import math
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule

from bonbon.engines.text.context_length import rotary_limit
from bonbon.errors import BonbonError
from bonbon.progress import Bars
from bonbon.settings import TrainSettings
from trainer.data.groups import Groups, Rows
from trainer.training.accelerator import name_layers
from trainer.training.learning.logprobs import Logprobs, candidate_logprobs
from trainer.training.learning.loss import GroupLogprobs, Loss, LossTerms
from trainer.training.learning.policy import save_policy, stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Weights = dict[str, Tensor]

GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, ignore_frozen_params=True, strict=False)
NORMS = 50
"""Number of recent gradient norms whose median a gradient is compared with."""


class Learner:
    """A policy in training. Every process of a distributed run creates one and calls the same methods alike.

    Args:
        policy: The policy to start from; see `load_policy`.
        base: Directory of the base, which is the reference policy.
        base_weights: The base's values of the weights that are trained, on the main process only. None for an adapter,
            without which the model is the base.
        loss: The loss to minimise.

    Attributes:
        model: The policy as prepared by the accelerator.
        optimiser: AdamW; `restart` creates a new one.
        gradient_norms: The latest norms, before clipping.
    """

    def __init__(
        self,
        config: TrainSettings,
        policy: "PreTrainedModel | PeftModel",
        accelerator: Accelerator,
        *,
        base: Path,
        base_weights: Weights | None,
        loss: Loss,
        progress: Bars,
    ) -> None:
        self.config, self.accelerator, self.loss = config, accelerator, loss
        self._base, self._base_weights = base, base_weights
        name_layers(accelerator, policy)
        self.model, self.optimiser = accelerator.prepare(policy, self._optimiser(policy))
        longest = rotary_limit(policy.config.get_text_config())
        self.logprobs = Logprobs(self.model, accelerator, config.micro_batch_size, progress, longest=longest)
        self.gradient_norms: deque[float] = deque(maxlen=NORMS)

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter is trained instead of the whole model."""
        return self._base_weights is None

    @property
    def policy(self) -> "PreTrainedModel | PeftModel":
        """The unwrapped model."""
        unwrapped: PreTrainedModel | PeftModel = self.accelerator.unwrap_model(self.model)
        return unwrapped

    def restart(self, weights: Weights) -> None:
        """Restores these weights and creates an optimiser without state."""
        self.load(weights)
        self.optimiser.optimizer.state.clear()
        self.gradient_norms.clear()

    def update(
        self, groups: Groups, chosen: Sequence[Rows], reference: Tensor, *, rate: float, seed: int
    ) -> dict[str, float]:
        """Takes one optimiser step.

        Args:
            chosen: Candidates to learn from, by their position in the flat arrays of `groups`. Each entry holds
                candidates of one group. The number of entries must fill the forward passes of all processes.
            reference: Log-probabilities of all candidates of `groups` under the base.
            rate: The learning rate.
            seed: Seed of the random numbers (dropout).

        Returns:
            The terms of the loss, the norm of the gradient, the learning rate and the tokens read per second.

        Raises:
            BonbonError: The loss or the gradient is not finite; the weights are unchanged.
        """
        start = perf_counter()
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = rate
        torch.manual_seed(int(np.random.SeedSequence([seed, self.accelerator.process_index]).generate_state(1)[0]))
        self.model.train()
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        batches = self.logprobs.batches(groups, chosen)[mine::processes]
        self.accelerator.gradient_accumulation_steps, self.accelerator.step = len(batches), 0
        self.optimiser.optimizer.zero_grad()  # a refused step leaves its gradient behind
        terms, tokens, norm = [], 0, torch.zeros(())
        means = [math.nan]
        for batch in batches:
            with self.accelerator.accumulate(self.model):
                tokens += batch.tokens
                logprobs = candidate_logprobs(self.model, batch.to(self.accelerator.device))
                term = self.loss(beside_reference(groups, batch.candidates, logprobs, reference))
                self.accelerator.backward(term.loss)
                terms.append(torch.stack([value.detach().float() for value in term]))
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self._longest())
                    means = self.accelerator.reduce(torch.stack(terms).mean(0), "mean").tolist()
                    _refuse_non_finite(rate, loss=means[0], gradient_norm=float(norm))
                self.optimiser.step()
                self.optimiser.zero_grad()
        self.gradient_norms.append(float(norm))
        seconds = perf_counter() - start
        return {
            **dict(zip(LossTerms._fields, means, strict=True)),
            "gradient_norm": float(norm),
            "learning_rate": rate,
            "tokens_per_second": tokens * processes / seconds,
        }

    def whole(self, groups: int) -> int:
        """Returns the largest number of groups, up to `groups`, that fills every process's forward passes equally."""
        unit: int = self.config.micro_batch_size * self.accelerator.num_processes
        return groups // unit * unit

    def of_policy(self, groups: Groups, rows: Rows, title: str, *, transient: bool = False) -> Tensor:
        """Returns the log-probabilities of all candidates of `rows` under the policy; see `Logprobs.of`."""
        return self.logprobs.of(groups, rows, title, transient=transient)

    def of_base(self, groups: Groups, rows: Rows, title: str, *, transient: bool = False) -> Tensor:
        """Returns the log-probabilities of all candidates of `rows` under the base."""
        with self._as_base():
            return self.logprobs.of(groups, rows, title, transient=transient)

    def weights(self) -> Weights:
        """Returns the trained weights by name, gathered on the CPU of the main process; empty in the others."""
        weights: Any = get_model_state_dict(self.model, options=GATHERED)
        return {name: weight.detach().clone() for name, weight in weights.items()}

    def load(self, weights: Weights) -> None:
        """Loads weights into the model. Only the main process needs to pass them."""
        several = self.accelerator.num_processes > 1
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # weights outside the layers stay gathered after a forward pass
        # A copy of the dictionary, because torch adds the frozen weights to the one it is given.
        set_model_state_dict(self.model, {**weights}, options=SPREAD if several else GATHERED)

    def interpolated(self, weights: Weights, share: float) -> Weights:
        """Returns the weights at `share` of the way from the base to `weights`, as they are stored."""
        return stored(self.policy, self._base, self.towards_base(weights, share))

    def towards_base(self, weights: Weights, share: float) -> Weights:
        """Returns the weights at `share` of the way from the base to `weights`, in the precision of training."""
        if self._base_weights is None:
            # The adapter's output is linear in its second matrix.
            return {name: weight * share if _is_second_matrix(name) else weight for name, weight in weights.items()}
        return {name: self._base_weights[name].lerp(weight, share) for name, weight in weights.items()}

    def save(self, weights: Weights, directory: Path, *, base_name: str) -> None:
        """Writes weights in the format that an engine loads. `directory` is replaced once the files are complete.

        Raises:
            BonbonError: A weight is not finite; nothing is written.
        """
        if self.accelerator.is_main_process:
            refuse_non_finite(weights)
            partial = directory.with_name(f".{directory.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(parents=True, exist_ok=True)
            save_policy(self.policy, partial, base=self._base, base_name=base_name, weights=weights)
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _as_base(self) -> Iterator[None]:
        policy = self.policy
        if isinstance(policy, PeftModel):
            with policy.disable_adapter():
                yield
            return
        trained = self.weights()
        self.load(self._base_weights or {})
        try:
            yield
        finally:
            self.load(trained)

    def _longest(self) -> float:
        """Returns the norm to which longer gradients are clipped: `max_grad_norm` times the median of the latest
        norms."""
        norms = self.gradient_norms
        return self.config.max_grad_norm * median(norms) if len(norms) >= NORMS // 5 else math.inf

    def _optimiser(self, policy: "PreTrainedModel | PeftModel") -> torch.optim.Optimizer:
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, weight_decay=self.config.weight_decay)


def beside_reference(groups: Groups, candidates: Tensor, policy: Tensor, reference: Tensor) -> GroupLogprobs:
    """Returns candidates with all fields that the loss needs.

    Args:
        candidates: Positions in the flat arrays of `groups`, those of one group adjacent, [candidates].
        policy: Their log-probabilities under the policy, [candidates].
        reference: Log-probabilities of all candidates of `groups` under the base.
    """
    places = candidates.cpu().numpy()
    rows = groups.owners[places]
    known = (
        reference[torch.from_numpy(places)],
        torch.from_numpy(groups.wins[places]).float(),
        torch.from_numpy(groups.ranks[places]).float(),
        torch.from_numpy(groups.n[rows]),
        torch.from_numpy(np.cumsum(np.diff(rows, prepend=rows[0]) != 0)),
    )
    return GroupLogprobs(policy, *(value.to(policy.device) for value in known))


def refuse_non_finite(weights: Weights) -> None:
    """Raises BonbonError, which names the first tensor with a NaN or an infinity."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise BonbonError(f"the trained weight {name} is not finite; lower train.learning_rate")


def _is_second_matrix(name: str) -> bool:
    return "lora_B" in name or "lora_embedding_B" in name


def _refuse_non_finite(rate: float, **values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise BonbonError(f"the {name.replace('_', ' ')} is {value} at a learning rate of {rate:g}")
