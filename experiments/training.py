"""Trains policies of the exact world with the trainer's own losses and measures them exactly."""

import copy
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bonbon.settings import TrainSettings
from bonbon.theory import best_of_n_kl, frontier_gap, objective_gain
from experiments.exact_world import MASK, PROMPTS, Drawn, ExactWorld, Size, logprobs, sequence_logprobs
from trainer.data.batches import epoch_steps
from trainer.training.learning.candidate_selection import candidates, trainable_rows
from trainer.training.learning.learner import beside_reference
from trainer.training.learning.loss import OF_ALL_CANDIDATES, Loss, LossName, make_loss
from trainer.training.run import REFINED
from trainer.training.stages.refinement import tilt_at_limit
from trainer.training.stages.schedule import learning_rate_factor

CANDIDATES = 128
"""Candidates that every loss reads per step: all of 16 groups of 8, or a pair of each of 64 groups."""
WARMUP = 20
"""Steps in which the learning rate rises."""
OWN_SEED = 1_000_000
"""The first seed of the policy's own draws, and the distance to those in the next world."""
GROUPS_SEED = 100
"""Added to a world's seed, so that its groups are not drawn with the random numbers that made it."""


@dataclass(frozen=True, slots=True)
class Method:
    """A loss by its name in `train.loss`, with the weight of the supervised term for `gvpo`."""

    loss: LossName
    sft_weight: float = 0.0


METHODS = {
    "gvpo": Method("gvpo"),
    "gvpo + SFT": Method("gvpo", sft_weight=1.0),
    "vbon": Method("vbon"),
    "bond": Method("bond"),
    "bonbon": Method("bonbon"),
    "paper": Method("paper"),
    "sft": Method("sft"),
    "ipo": Method("ipo"),
    "dpo": Method("dpo"),
}
"""The methods by their names on the page."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The data and steps of a training: groups of n for the first `prompts` prompts, and optimiser steps."""

    n: int = 8
    groups: int = 8192
    steps: int = 512
    learning_rate: float = 2e-3
    prompts: int = PROMPTS


@lru_cache(maxsize=1)
def world(seed: int) -> ExactWorld:
    """Returns the world of a seed; a process caches the last one."""
    return ExactWorld(seed, Size())


def train(world: ExactWorld, drawn: Drawn, method: Method, budget: Budget, *, own_tokens: int = 0) -> PreTrainedModel:
    """Returns a copy of the world's base, trained on those groups that the loss can learn from.

    Args:
        own_tokens: Tokens that the policy then draws to learn from.
    """
    policy, groups, seed = copy.deepcopy(world.base).train(), drawn.groups, world.seed
    loss = make_loss(method.loss, n=budget.n, sft_weight=method.sft_weight)
    rows, size = (
        trainable_rows(groups, method.loss),
        CANDIDATES // (budget.n if method.loss in OF_ALL_CANDIDATES else 2),
    )
    steps_per_epoch = len(rows) // size
    optimiser = torch.optim.AdamW(policy.parameters(), weight_decay=0.0)
    for step in range(budget.steps):
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0:
            batches = epoch_steps(rows, size, seed=seed, epoch=epoch)
        rate = budget.learning_rate * learning_rate_factor(step, budget.steps, WARMUP / budget.steps)
        places = np.concatenate(candidates(groups, batches[position], method.loss, seed=seed, step=step))
        _step(world, policy, optimiser, loss, drawn, places, rate)
    if own_tokens:
        _refine(world, policy, drawn, method, budget, own_tokens)
    return policy.eval()


def _refine(
    world: ExactWorld, policy: PreTrainedModel, logged: Drawn, method: Method, budget: Budget, own_tokens: int
) -> None:
    """Learns from the policy's own draws like the trainer, but without warm-up, validation and moving back."""
    loss = make_loss(method.loss, n=budget.n, tilt=tilt_at_limit(best_of_n_kl(budget.n), budget.n))
    replays = TrainSettings().refine_replay
    optimiser = torch.optim.AdamW(policy.parameters(), weight_decay=0.0)
    kept: list[Drawn] = []
    tokens = 0
    while tokens < own_tokens:
        seed = OWN_SEED * (1 + world.seed) + len(kept)
        rate = REFINED * budget.learning_rate * (1 - tokens / own_tokens)
        drawn = world.draw(
            CANDIDATES // budget.n,
            budget.n,
            seed=seed,
            prompts=budget.prompts,
            policy=policy,
            opponents=logged,
        )
        kept.append(drawn)
        tokens += int(MASK[drawn.completions].sum())  # with the end token, as the trainer counts
        earlier = np.random.default_rng(seed).integers(len(kept), size=replays)
        for some in (drawn, *(kept[number] for number in earlier)):
            _step(world, policy, optimiser, loss, some, np.arange(CANDIDATES), rate)


def _step(
    world: ExactWorld,
    policy: PreTrainedModel,
    optimiser: torch.optim.Optimizer,
    loss: Loss,
    drawn: Drawn,
    chosen: NDArray[np.int64],
    rate: float,
) -> None:
    """Takes a step on the chosen candidates of `drawn`."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    places = torch.from_numpy(chosen)
    reference = world.base_logprobs[drawn.prompts, drawn.completions].float()
    ours = sequence_logprobs(policy, drawn.prompts[places], drawn.completions[places])
    terms = loss(beside_reference(drawn.groups, places, ours, reference))
    optimiser.zero_grad()
    terms.loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def figures(world: ExactWorld, policy: Tensor, n: int, prompts: slice = slice(None)) -> dict[str, Any]:
    """Returns exact measures of a policy's log-probabilities.

    `gap` is the distance of its win rate below the frontier, and `gain` its J minus the base's.
    """
    measures = world.measure(policy, n, prompts)
    return asdict(measures) | {
        "gap": frontier_gap(measures.win_rate, measures.kl),
        "gain": objective_gain(measures.win_rate, measures.kl, n),
    }


def trained_figures(method: Method, seed: int, budget: Budget, *, own_tokens: int = 0) -> dict[str, Any]:
    """Returns the figures of a policy trained in the world of this seed; `other_prompts` are those without groups, if
    any.
    """
    here = world(seed)
    groups = here.draw(budget.groups, budget.n, seed=GROUPS_SEED + seed, prompts=budget.prompts)
    policy = logprobs(train(here, groups, method, budget, own_tokens=own_tokens))
    found = figures(here, policy, budget.n, slice(budget.prompts))
    if budget.prompts < PROMPTS:
        found["other_prompts"] = figures(here, policy, budget.n, slice(budget.prompts, None))
    return found
