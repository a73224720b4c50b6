"""Tests of GVPO on tabular policies: its minimum is the best policy, and its gradient on fresh draws is that of J.

A prompt has a few answers, and a policy is a softmax over them. Tests whose batch holds every possible group, as often
as it is likely, leave nothing to chance.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from bonbon.theory import best_gain, best_of_n_kl, objective_gain, tilt, tilted_win_rate
from trainer.data.groups import win_chances
from trainer.training.learning.loss import GroupLogprobs, gvpo

BASE = (0, 0, 1, 2)
"""The base's answers by value; each position is drawn equally often."""


def probabilities(places: Sequence[int], answers: int) -> Tensor:
    return torch.bincount(torch.tensor(places), minlength=answers) / len(places)


def win_rates(base: Tensor) -> Tensor:
    """Returns the win rate of each answer against one draw of the base, ties as half."""
    return base.cumsum(0) - base / 2


def in_groups(answers: Tensor, wins: Tensor, policy: Tensor, base: Tensor) -> GroupLogprobs:
    """Returns a batch of groups.

    Args:
        answers: [groups, n], in the order of their value; `wins` are their estimated win chances.
        policy, base: Log-probabilities of every answer.
    """
    groups, n = answers.shape
    return GroupLogprobs(
        policy=policy[answers].flatten(),
        reference=base[answers].flatten(),
        wins=wins.flatten(),
        rank=torch.arange(1, n + 1).repeat(groups).float(),
        n=torch.full((groups * n,), n),
        group=torch.arange(groups).repeat_interleave(n),
    )


def every_group(places: Sequence[int], n: int) -> Tensor:
    """Returns all possible results of n draws, [groups, n]."""
    return torch.tensor([sorted(drawn) for drawn in product(places, repeat=n)])


def chances(answers: Tensor, opponents: Tensor) -> Tensor:
    """Returns win chances of each group's answers estimated against the opponents in the same row, [groups, n]."""
    pairs = zip(answers.numpy().astype(float), opponents.numpy().astype(float), strict=True)
    return torch.tensor(np.array([win_chances(ours, theirs) for ours, theirs in pairs]))


def minimum(answers: Tensor, wins: Tensor, base: Tensor, *, c: float, sft_weight: float = 0.0) -> Tensor:
    """Returns the log-probabilities of the tabular policy that minimises the loss on these groups."""
    logits = torch.zeros(len(base), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        batch = in_groups(answers, wins, logits.log_softmax(0), base.log())
        loss = gvpo(batch, tilt=c, sft_weight=sft_weight).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return logits.detach().log_softmax(0)


def tilted(base: Tensor, c: float) -> Tensor:
    """Returns the log-probabilities of the best policy."""
    return (base.double().log() + c * win_rates(base).double()).log_softmax(0)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_from_the_bases_own_groups_the_minimum_is_the_tilted_base(n: int) -> None:
    """This holds for every group size, although each candidate is one of its own opponents."""
    base, answers = probabilities(BASE, 3), every_group(BASE, n)
    wins = chances(answers, answers)
    found = minimum(answers, wins, base.double(), c=tilt(8))
    torch.testing.assert_close(found, tilted(base, tilt(8)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", [(0, 1, 2), (0, 1, 2, 2, 2, 2), (0, 0, 0, 0, 1, 2)], ids=["even", "best", "worst"])
def test_whoever_drew_the_candidates_the_minimum_is_the_tilted_base(sampler: tuple[int, ...]) -> None:
    """The win chances are estimated from all possible pairs of draws of the base."""
    base = probabilities(BASE, 3)
    drawn, opponents = every_group(sampler, 3), every_group(BASE, 2)
    answers = drawn.repeat_interleave(len(opponents), 0)
    wins = chances(answers, opponents.repeat(len(drawn), 1))
    found = minimum(answers, wins, base.double(), c=tilt(4))
    torch.testing.assert_close(found, tilted(base, tilt(4)), atol=1e-4, rtol=0)


def test_many_simulated_groups_reach_the_kl_and_the_win_rate_of_best_of_n() -> None:
    """Ranks over n + 1, by which every target is 8/9 as far, would end at a KL of 1.10 and a win rate of .876.

    160 equally likely answers, 60,000 groups of 8: the win rate varies by less than .001, the KL by less than .01.
    """
    count, n = 160, 8
    answers = torch.from_numpy(np.sort(np.random.default_rng(0).integers(0, count, (60_000, n)), axis=1))
    wins = chances(answers, answers)
    base = torch.full((count,), 1 / count, dtype=torch.float64)
    found = minimum(answers, wins, base, c=tilt(n))
    win_rate = float((found.exp() * win_rates(base)).sum())
    kl = float((found.exp() * (found - base.log())).sum())
    assert win_rate == pytest.approx(tilted_win_rate(tilt(n)), abs=0.002)
    assert kl == pytest.approx(best_of_n_kl(n), abs=0.02)
    assert objective_gain(win_rate, kl, n) == pytest.approx(best_gain(n), abs=0.01)


def test_the_supervised_term_holds_the_policy_nearer_to_the_base() -> None:
    """With the same weight as the contrast, it costs little of the objective and saves a quarter of the KL."""
    count, n = 160, 8
    answers = torch.from_numpy(np.sort(np.random.default_rng(0).integers(0, count, (10_000, n)), axis=1))
    base = torch.full((count,), 1 / count, dtype=torch.float64)
    found = minimum(answers, chances(answers, answers), base, c=tilt(n), sft_weight=1.0)
    win_rate = float((found.exp() * win_rates(base)).sum())
    kl = float((found.exp() * (found - base.log())).sum())
    assert 0.7 * best_of_n_kl(n) < kl < 0.9 * best_of_n_kl(n)
    assert objective_gain(win_rate, kl, n) > 0.97 * best_gain(n)


def objective(logits: Tensor, base: Tensor, c: float) -> Tensor:
    """Returns J by its definition."""
    policy = logits.log_softmax(0)
    return (policy.exp() * (c * win_rates(base) - policy + base.log())).sum()


@pytest.mark.parametrize("n", [2, 3])
def test_on_the_policys_own_draws_the_gradient_is_that_of_j(n: int) -> None:
    """The batch holds every group that the policy may draw, with all possible opponents."""
    policy, c = (0, 0, 1, 2, 2, 2), 5.0
    base = probabilities(BASE, 3).double()
    logits = probabilities(policy, 3).double().log().requires_grad_()
    opponents = every_group(BASE, 2)
    answers = every_group(policy, n).repeat_interleave(len(opponents), 0)
    wins = chances(answers, opponents.repeat(len(answers) // len(opponents), 1))
    loss = gvpo(in_groups(answers, wins, logits.log_softmax(0), base.log()), tilt=c).loss
    found, expected = (torch.autograd.grad(value, logits)[0] for value in (loss, -objective(logits, base, c)))
    torch.testing.assert_close(found, expected)
    assert float(expected.abs().max()) > 0.1


def test_one_group_of_fresh_draws_is_reinforce_with_the_others_mean_as_baseline() -> None:
    """R_k = c U_k - log pi/pi_0, less the mean of the other draws' R, times the gradient of log pi."""
    c, answers = 5.0, torch.tensor([[0, 1, 1, 2]])
    wins = torch.tensor([[0.25, 0.5, 0.5, 1.0]], dtype=torch.float64)
    base = probabilities(BASE, 3).double()
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    policy = logits.log_softmax(0)
    batch = in_groups(answers, wins, policy, base.log())
    rewards = (c * batch.wins - batch.log_ratio).detach()
    advantages = rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
    expected, found = (
        torch.autograd.grad(loss, logits, retain_graph=True)[0]
        for loss in (-(advantages * batch.policy).mean(), gvpo(batch, tilt=c).loss)
    )
    torch.testing.assert_close(found, expected)


def test_candidates_of_one_chance_are_pulled_together() -> None:
    """A tied group teaches that its candidates are equally good."""
    policy = torch.tensor([-3.0, -1.0], requires_grad=True)
    ones = torch.ones(2)
    batch = GroupLogprobs(policy, -2 * ones, ones / 2, 1.5 * ones, 2 * ones.long(), 0 * ones.long())
    gvpo(batch, tilt=5.0).loss.backward()  # type: ignore[no-untyped-call]
    assert policy.grad is not None
    assert policy.grad[0] < 0 < policy.grad[1]
