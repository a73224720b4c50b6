"""Measures policies on validation prompts, in order to choose learning rates, steps and stages."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bonbon.engines.engine import VersionKind
from bonbon.pairs.reading.snapshot import Split
from bonbon.settings import TrainSettings
from trainer.data.groups import Distribution, Groups, Rows
from trainer.training.learning.learner import Learner, Weights, beside_reference
from trainer.training.learning.loss import margins
from trainer.training.sampler_check import check_sampler
from trainer.training.stages.draws import DrawBox, DrawOrder

UNSERVED = (
    "if the engine ignores a part of the adapter, start a new run from the base with train.lora_output_layer = false "
    "or fewer train.lora_targets; raise train.max_sampler_gap if you know another reason"
)
"""The remedy where the engine draws from another policy than the trainer gave it."""
MAX_GROUPS = 128
"""The most validation groups that are used. Their gain is then precise enough to rank policies."""


@dataclass(frozen=True, slots=True)
class LoggedGain:
    """A policy's gain in J over the base on logged groups, in nats, to second order in the distance from the base.

    `forward` is the reduction of KL(best || policy), in nats, where the best policy is the base tilted by exp(c U). It
    falls when the policy moves to text that is unlikely under the base, which `gain` cannot detect. `margin` and
    `target` are the fields of the training's `LossTerms`, on validation groups.
    """

    gain: float
    forward: float
    margin: float
    target: float

    @property
    def value(self) -> float:
        """The lower of `gain` and `forward`, by which learning rates are compared.

        A learning rate that is too high may raise `gain` while it moves the policy to text that is unlikely under the
        base.
        """
        return min(self.gain, self.forward)


@dataclass(frozen=True, slots=True)
class DrawnGain:
    """A policy's gain in J over the base on its own fresh draws, with its components.

    `gain` is c (win rate - 1/2) - KL in nats, with the standard error of its mean over prompts, and `kl` is the mean
    log ratio. `draws` and `tokens` are the numbers of candidates and of tokens drawn.
    """

    gain: float
    standard_error: float
    win_rate: float
    kl: float
    draws: int
    tokens: int

    def value(self, tilt: float) -> float:
        """Returns the gain in an objective with this c."""
        return tilt * (self.win_rate - 0.5) - self.kl

    def pooled(self, other: "DrawnGain") -> "DrawnGain":
        """Returns the gain on the draws of both, which come from the same policy for the same prompts.

        Its standard error is an upper bound, because both contain the same variation between prompts.
        """
        draws = self.draws + other.draws
        share = self.draws / draws

        def mean(name: str) -> float:
            return float(share * getattr(self, name) + (1 - share) * getattr(other, name))

        return DrawnGain(
            gain=mean("gain"),
            standard_error=mean("standard_error"),
            win_rate=mean("win_rate"),
            kl=mean("kl"),
            draws=draws,
            tokens=self.tokens + other.tokens,
        )


def validation_rows(groups: Groups, seed: int, limit: int = MAX_GROUPS) -> Rows:
    """Returns at most `limit` of the validation groups drawn from the base; the same seed gives the same groups."""
    rows = groups.rows_of(Split.VALIDATION)
    rows = rows[groups.by_base[rows]]
    return np.sort(np.random.default_rng(seed).permutation(rows)[:limit])


def draws_per_prompt(config: TrainSettings, validation: Rows) -> int:
    """Returns the draws for each validation prompt when a policy is measured."""
    return max(2, math.ceil(config.validation_draws / max(1, len(validation))))


def logged_gain(groups: Groups, rows: Rows, policy: Tensor, reference: Tensor, tilt: float) -> LoggedGain:
    """Returns the gain of a policy on logged groups.

    Args:
        rows: Groups that were drawn from the base.
        policy, reference: Log-probabilities of all candidates of `groups` under the policy and under the base.
        tilt: c of the objective.
    """
    candidates = np.concatenate([groups.candidates_of(row) for row in rows])
    batch = beside_reference(groups, torch.from_numpy(candidates), policy[candidates], reference)
    log_ratio, target = batch.log_ratio, tilt * batch.wins
    gains = batch.covariance(target, log_ratio) - batch.covariance(log_ratio, log_ratio) / 2
    return LoggedGain(
        gain=float(gains.mean()),
        forward=float(batch.sum(batch.softmax(target) * log_ratio).mean()),
        margin=float(margins(batch).mean()),
        target=float((target[batch.best] - target[batch.worst]).mean()),
    )


def drawn_gain(groups: Groups, policy: Tensor, reference: Tensor, tilt: float) -> DrawnGain:
    """Returns the gain of a policy on its own draws.

    Args:
        groups: Drawn from the policy, for prompts that the base has drawn for.
        policy, reference: Log-probabilities of their candidates under the policy and under the base.
    """
    log_ratio = (policy - reference).double().numpy()
    gains = np.add.reduceat(tilt * (groups.wins - 0.5) - log_ratio, groups.starts) / groups.n
    return DrawnGain(
        gain=float(gains.mean()),
        standard_error=float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.nan,
        win_rate=float(groups.wins.mean()),
        kl=float(log_ratio.mean()),
        draws=len(log_ratio),
        tokens=int(groups.tokens.sum()),
    )


class Drawer:
    """Draws from a learner's policy through the process that runs the engine. Every process must call it.

    Args:
        groups: The run's snapshot and the base's draws for its prompts, with which draws are compared.
        base: The base's name.
        max_gap, noise: `limit` and `noise` of `check_sampler`, with which validation draws are checked.
    """

    def __init__(
        self, learner: Learner, groups: Groups, box: DrawBox, *, base: str, seed: int, max_gap: float, noise: float
    ) -> None:
        self._learner, self._groups, self._box = learner, groups, box
        self._base, self._seed, self._max_gap, self._noise = base, seed, max_gap, noise
        # Orders refer to rows of the snapshot; draws of the base in this run come after these rows.
        self._first: dict[Distribution, int] = {}
        for number, distribution in zip(groups.numbers.tolist(), groups.distributions, strict=True):
            self._first.setdefault(distribution, number)

    def __call__(self, number: int, weights: Weights, rows: Rows, count: int) -> Groups:
        """Returns `count` draws of the policy with these weights for each row's prompt, without those that exceed the
        context.

        Args:
            number: Identifies the draws in their run, so that they are not drawn twice.

        Raises:
            BonbonError: The other process failed to draw; the error is its own.
        """
        learner, policy = self._learner, self._box.policy(number)
        kind = VersionKind.ADAPTER if learner.trains_adapter else VersionKind.FULL
        asked = tuple(self._first[self._groups.distributions[row]] for row in rows)
        order = DrawOrder(number, str(policy), kind, asked, count, self._seed + number)
        if not self._box.fulfilled(order):
            learner.save(weights, policy, base_name=self._base)
        if learner.accelerator.is_main_process:
            self._box.wait(order)
        learner.accelerator.wait_for_everyone()
        return self.kept(number)

    def kept(self, number: int) -> Groups:
        """Returns the draws of this number."""
        return Groups.read(
            self._box.groups(number),
            base=self._base,
            opponents=self._groups.opponents,
            vocabulary=self._learner.policy.config.get_text_config().vocab_size,
        )

    def gain(self, number: int, weights: Weights, rows: Rows, count: int, tilt: float) -> DrawnGain:
        """Returns the gain of the policy with these weights, which the learner holds afterwards.

        Raises:
            UserError: The engine drew from another policy, for example because it ignored a part of the adapter.
            BonbonError: The other process failed to draw; the error is its own.
        """
        drawn = self(number, weights, rows, count)
        self._learner.load(weights)
        every = np.arange(len(drawn))
        policy = self._learner.of_policy(drawn, every, "log-probabilities of draws", transient=True)
        name, limit = "the policy in training", self._max_gap
        check_sampler(drawn, every, policy, limit=limit, noise=self._noise, name=name, remedy=UNSERVED)
        reference = self._learner.of_base(drawn, every, "log-probabilities of draws", transient=True)
        return drawn_gain(drawn, policy, reference, tilt)
