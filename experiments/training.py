"""Trains policies of the exact world with the trainer's own losses, and measures them exactly."""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bonbon.theory import frontier_gap
from experiments.exact_world import PROMPTS, ExactWorld, Groups, Size, logprobs, sequence_logprobs
from trainer.data.batches import Partner
from trainer.data.groups import pooled_ranks
from trainer.training.loss import Alpha, PairLogprobs, make_loss
from trainer.training.schedule import learning_rate_factor

BATCH, WARMUP, MAX_NORM = 64, 20, 10.0
GROUPS_SEED = 100
"""Added to a world's seed: its groups must not be drawn with the numbers that made it."""
SMALL = Size()


@dataclass(frozen=True, slots=True)
class Method:
    """A loss, by its name in `train.loss`, its alpha, and whom the best of a group is paired with."""

    loss: str
    alpha: Alpha = "auto"
    partner: Partner = "worst"


METHODS = {
    "SFT only": Method("sft"),
    "contrast only": Method("ipo"),
    "paper": Method("paper"),
    "DPO": Method("dpo"),
    "alpha .5, worst": Method("bonbon", 0.5),
    "alpha .5": Method("bonbon", 0.5, "random"),
    "auto": Method("bonbon", "auto", "random"),
}
"""By the names that the page calls them. The last two are the trainer's `bonbon`."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a policy is trained with: groups of n for the first `prompts` prompts, and optimiser steps."""

    n: int = 8
    groups: int = 8192
    steps: int = 2000
    learning_rate: float = 2e-3
    prompts: int = PROMPTS


@lru_cache(maxsize=1)
def world(seed: int, size: Size = SMALL) -> ExactWorld:
    """The same for each seed and size; a process keeps the last one."""
    return ExactWorld(seed, size)


def train(world: ExactWorld, groups: Groups, method: Method, budget: Budget) -> PreTrainedModel:
    """A copy of the world's base, trained on `groups`; those whose candidates are all alike are left out."""
    policy = copy.deepcopy(world.base).train()
    loss = make_loss(method.loss, alpha=method.alpha)
    data = _Ranked(groups, pool=method.loss == "bonbon" and method.alpha == "auto")
    optimiser = torch.optim.AdamW(policy.parameters(), weight_decay=0.0)
    generator = torch.Generator().manual_seed(world.seed)
    for step, rows in enumerate(_batches(data.rows, budget.steps, generator)):
        for group in optimiser.param_groups:
            group["lr"] = budget.learning_rate * learning_rate_factor(step, budget.steps, WARMUP / budget.steps)
        partners = torch.zeros_like(rows) if method.partner == "worst" else data.random_partners(rows, generator)
        terms = loss(data.pairs(world, policy, rows, partners))
        optimiser.zero_grad()
        terms.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_NORM)
        optimiser.step()
    return policy.eval()


def figures(world: ExactWorld, policy: Tensor, n: int, prompts: slice = slice(None)) -> dict[str, Any]:
    """Exact measures of a policy's log-probabilities, with `gap`: how far its win rate is under the frontier."""
    measures = world.measure(policy, n, prompts)
    return asdict(measures) | {"gap": frontier_gap(measures.win_rate, measures.kl)}


def trained_figures(method: Method, seed: int, budget: Budget, size: Size = SMALL) -> dict[str, Any]:
    """Of a policy that is trained in the world of this seed; `other_prompts` are those with no groups, if any."""
    here = world(seed, size)
    groups = here.draw(budget.groups, budget.n, seed=GROUPS_SEED + seed, prompts=budget.prompts)
    policy = logprobs(train(here, groups, method, budget))
    found = figures(here, policy, budget.n, slice(budget.prompts))
    if budget.prompts < PROMPTS:
        found["other_prompts"] = figures(here, policy, budget.n, slice(budget.prompts, None))
    return found


class _Ranked:
    """Groups with each candidate's rank, in its group or (`pool`) among all that were drawn for its prompt."""

    def __init__(self, groups: Groups, *, pool: bool) -> None:
        self.groups = groups
        count, self.n = groups.rewards.shape
        self.below = (groups.rewards < groups.rewards[:, -1:]).sum(1)
        self.rows = self.below.nonzero()[:, 0]
        pools = (groups.prompts if pool else torch.arange(count)).numpy().repeat(self.n)
        ranks, ranked = pooled_ranks(groups.rewards.flatten().numpy(), pools)
        self.ranks = torch.from_numpy(ranks).view(count, self.n)
        self.ranked = torch.from_numpy(ranked).view(count, self.n)[:, 0]

    def random_partners(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Places of candidates below the best of their group, [rows]."""
        return (torch.rand(len(rows), generator=generator) * self.below[rows]).long()

    def pairs(self, world: ExactWorld, policy: PreTrainedModel, rows: Tensor, partners: Tensor) -> PairLogprobs:
        """The best of each group and the candidate at its partner's place, in one forward pass."""
        prompts = self.groups.prompts[rows]
        chosen, rejected = self.groups.completions[rows, -1], self.groups.completions[rows, partners]
        ours = sequence_logprobs(policy, prompts.repeat(2), torch.cat([chosen, rejected]))
        return PairLogprobs(
            chosen=ours[: len(rows)],
            rejected=ours[len(rows) :],
            reference_chosen=world.base_logprobs[prompts, chosen].float(),
            reference_rejected=world.base_logprobs[prompts, rejected].float(),
            n=torch.full_like(rows, self.n),
            chosen_rank=self.ranks[rows, -1],
            rejected_rank=self.ranks[rows, partners],
            ranked=self.ranked[rows],
            below=self.below[rows],
        )


def _batches(rows: Tensor, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` batches, each row once an epoch; the last rows that fill no batch are left out of it."""
    order, place = rows[torch.randperm(len(rows), generator=generator)], 0
    for _ in range(steps):
        if place + BATCH > len(rows):
            order, place = rows[torch.randperm(len(rows), generator=generator)], 0
        yield order[place : place + BATCH]
        place += BATCH
