"""Tests of the losses on pairs against hand-computed values, theory and simulated best-of-n groups."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bonbon.theory import pair_target, pair_target_variance, rank_pair_target, rank_pair_variance, tilt
from trainer.training.learning.loss import (
    GroupLogprobs,
    Loss,
    LossName,
    bonbon,
    bond,
    dpo,
    gvpo,
    ipo,
    make_loss,
    margins,
    pair_targets,
    pair_variances,
    paper,
    sft,
    vbon,
)

PAIR_LOSSES: list[LossName] = ["bonbon", "paper", "sft", "ipo", "dpo"]
EVERY_LOSS: list[LossName] = ["gvpo", "vbon", "bond", *PAIR_LOSSES]


def loss_of(name: LossName, **options: float) -> Loss:
    return make_loss(name, n=8, **options)


def pairs(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, n: Tensor
) -> GroupLogprobs:
    """Returns groups of the worst and the best candidate of n."""

    def interleaved(worst: Tensor, best: Tensor) -> Tensor:
        return torch.stack([worst, best], dim=1).flatten()

    return GroupLogprobs(
        policy=interleaved(rejected, chosen),
        reference=interleaved(reference_rejected, reference_chosen),
        wins=interleaved(0.5 / n, 1 - 0.5 / n),
        rank=interleaved(torch.ones_like(n), n).float(),
        n=interleaved(n, n),
        group=torch.arange(len(n)).repeat_interleave(2),
    )


def best_and_worst(ns: Sequence[int]) -> GroupLogprobs:
    zeros = torch.zeros(len(ns))
    return pairs(zeros, zeros, zeros, zeros, torch.tensor(ns))


def batch() -> GroupLogprobs:
    """Margins 5 - (-1) = 6 and 1 - 2 = -1, with n = 3 (target 3, variance 5) and n = 2 (target 1, variance 1)."""
    return pairs(
        chosen=torch.tensor([-10.0, -20.0]),
        rejected=torch.tensor([-12.0, -30.0]),
        reference_chosen=torch.tensor([-15.0, -21.0]),
        reference_rejected=torch.tensor([-11.0, -32.0]),
        n=torch.tensor([3, 2]),
    )


def test_targets_are_the_theorys() -> None:
    ns = range(2, 129)
    some = best_and_worst(ns)
    torch.testing.assert_close(pair_targets(some), torch.tensor([pair_target(n) for n in ns]))
    torch.testing.assert_close(pair_variances(some), torch.tensor([pair_target_variance(n) for n in ns]))


def test_targets_of_any_two_ranks_are_the_theorys() -> None:
    ranks = [(upper, lower) for upper in range(2, 9) for lower in range(1, upper)]
    some = best_and_worst([8] * len(ranks))._replace(rank=torch.tensor(ranks).float().flip(1).flatten())
    torch.testing.assert_close(pair_targets(some), torch.tensor([rank_pair_target(*pair, 8) for pair in ranks]))
    torch.testing.assert_close(pair_variances(some), torch.tensor([rank_pair_variance(*pair, 8) for pair in ranks]))


@pytest.mark.parametrize(
    ("n", "beta", "target", "sd"),
    [(2, 0.5, 1, 1), (3, 0.166667, 3, 2.24), (8, 0.0275482, 18.15, 8.61), (64, 0.00167852, 297.9, 80.4)],
)
def test_targets_are_the_papers(n: int, beta: float, target: float, sd: float) -> None:
    some = best_and_worst([n])
    assert pair_targets(some).item() == pytest.approx(target, rel=2e-4)
    assert 1 / (2 * pair_targets(some).item()) == pytest.approx(beta, rel=1e-5)
    assert math.sqrt(pair_variances(some).item()) == pytest.approx(sd, rel=2e-3)


@pytest.mark.parametrize(
    ("loss", "value", "contrast"),
    [
        (bonbon, 0.5 * 15 + 0.5 * (9 / 5 + 4) / 2, (9 / 5 + 4) / 2),
        (paper, 0.005 * 15 + 0.995 * (9 + 4) / 2, (9 + 4) / 2),
        (sft, 15.0, (9 / 5 + 4) / 2),
        (ipo, 6.5, 6.5),
        (dpo, (math.log1p(math.exp(-0.6)) + math.log1p(math.exp(0.1))) / 2, None),
    ],
)
def test_by_hand(loss: Loss, value: float, contrast: float | None) -> None:
    terms = loss(batch())
    assert terms.loss.item() == pytest.approx(value, rel=1e-5)
    assert terms.contrast.item() == pytest.approx(value if contrast is None else contrast, rel=1e-5)
    assert (terms.sft.item(), terms.margin.item(), terms.target.item()) == pytest.approx((15.0, 2.5, 2.0))
    assert (terms.chosen_logprob.item(), terms.rejected_logprob.item()) == (-15.0, -21.0)


def test_gvpo_by_hand() -> None:
    """Two groups, of three candidates and of two, at a tilt of 6.

    Log ratios 1, 2, 3 and targets 1, 3, 5: the residuals 0, -1, -2 have a variance of 1. Log ratios 0, 4 and targets 0,
    3: the residuals 0, 1 have a variance of 1/2.
    """
    some = GroupLogprobs(
        policy=torch.tensor([-9.0, -8.0, -7.0, -5.0, -1.0]),
        reference=torch.tensor([-10.0, -10.0, -10.0, -5.0, -5.0]),
        wins=torch.tensor([1 / 6, 1 / 2, 5 / 6, 0.0, 0.5]),
        rank=torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0]),
        n=torch.tensor([3, 3, 3, 2, 2]),
        group=torch.tensor([0, 0, 0, 1, 1]),
    )
    terms = gvpo(some, tilt=6.0)
    assert terms.loss.item() == terms.contrast.item() == pytest.approx((1 + 0.5) / 2 / 2)
    assert terms.margin.item() == pytest.approx((2 + 4) / 2)
    assert terms.target.item() == pytest.approx((4 + 3) / 2)
    weights = [torch.tensor([1.0, 3.0, 5.0]).softmax(0), torch.tensor([0.0, 3.0]).softmax(0)]
    expected = [weights[0] @ torch.tensor([9.0, 8.0, 7.0]), weights[1] @ torch.tensor([5.0, 1.0])]
    assert terms.sft.item() == pytest.approx(float(sum(expected)) / 2)
    both = gvpo(some, tilt=6.0, sft_weight=0.1)
    assert both.loss.item() == pytest.approx(terms.loss.item() + 0.1 * terms.sft.item())


def test_best_of_n_itself_is_the_target_of_vbon_and_bond() -> None:
    """A draw with rank r in a group of eight has best-of-8's ratio 8 U^7, with U the rank divided by eight."""
    ranks = torch.arange(1.0, 9.0)
    best_of_n = math.log(8) + 7 * (ranks / 8).log()
    eight = GroupLogprobs(
        policy=(best_of_n - 20.0).requires_grad_(),
        reference=torch.full((8,), -20.0),
        wins=(ranks - 0.5) / 8,
        rank=ranks,
        n=torch.full((8,), 8),
        group=torch.zeros(8, dtype=torch.long),
    )
    reached = vbon(eight, n=8)
    assert reached.loss.item() == pytest.approx(0, abs=1e-6)
    assert reached.target.item() == pytest.approx(7 * math.log(8), rel=1e-5)
    weights = ranks**7 / (ranks**7).sum()
    both = bond(eight, n=8)
    assert both.sft.item() == pytest.approx(-(weights @ eight.policy).item(), rel=1e-5)
    assert both.loss.item() == pytest.approx(both.sft.item() / 2, rel=1e-5)
    short = eight._replace(policy=eight.reference.clone())
    assert bond(short, n=8).contrast.item() == pytest.approx((7 * (ranks / 8).log()).var().item() / 2, rel=1e-5)


def test_names_and_weights() -> None:
    some = batch()
    for name, loss in zip(PAIR_LOSSES, (bonbon, paper, sft, ipo, dpo), strict=True):
        assert torch.equal(loss_of(name)(some).loss, loss(some).loss)
    assert torch.equal(loss_of("gvpo")(some).loss, gvpo(some, tilt=tilt(8)).loss)
    assert torch.equal(loss_of("gvpo", sft_weight=0.3)(some).loss, gvpo(some, tilt=tilt(8), sft_weight=0.3).loss)
    assert torch.equal(loss_of("vbon")(some).loss, vbon(some, n=8).loss)
    assert torch.equal(loss_of("bond", sft_weight=0.3)(some).loss, bond(some, n=8).loss)
    assert torch.equal(loss_of("bonbon", alpha=1.0)(some).loss, sft(some).loss)
    assert torch.equal(loss_of("bonbon", alpha=0.5)(some).loss, bonbon(some).loss)
    assert torch.equal(loss_of("paper", alpha=0.0)(some).loss, ipo(some).loss)
    assert torch.equal(loss_of("dpo", dpo_beta=2.0)(some).loss, dpo(some, beta=2.0).loss)


def gradients(loss: Loss, margin: float, n: int = 8) -> tuple[float, float]:
    """Returns the gradients by chosen and rejected log-probability of one pair with this margin."""
    chosen, rejected = torch.tensor([margin - 50.0]).requires_grad_(), torch.tensor([-50.0]).requires_grad_()
    reference = torch.tensor([-50.0])
    loss(pairs(chosen, rejected, reference, reference, torch.tensor([n]))).loss.backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None
    assert rejected.grad is not None
    return chosen.grad.item(), rejected.grad.item()


@pytest.mark.parametrize("name", ["gvpo", "vbon", "bond", "bonbon", "paper", "ipo", "dpo"])
def test_below_the_target_the_margin_grows(name: LossName) -> None:
    by_chosen, by_rejected = gradients(loss_of(name), margin=0.0)
    assert by_chosen < 0 < by_rejected


@pytest.mark.parametrize("name", ["gvpo", "vbon", "bond", "bonbon", "paper", "ipo"])
def test_above_the_target_the_rejected_recovers(name: LossName) -> None:
    _, by_rejected = gradients(loss_of(name), margin=30.0)
    assert by_rejected < 0


def test_at_the_target_only_sft_pulls() -> None:
    assert gradients(ipo, pair_target(8)) == pytest.approx((0, 0), abs=1e-5)
    assert gradients(bonbon, pair_target(8)) == pytest.approx((-0.5, 0), abs=1e-5)
    assert gradients(sft, 0.0) == (-1.0, 0.0)
    assert gradients(loss_of("gvpo"), 7 / 8 * tilt(8)) == pytest.approx((0, 0), abs=1e-5)


@pytest.mark.parametrize("name", EVERY_LOSS)
@pytest.mark.parametrize("far", [120.0, 1e4])
def test_no_gradient_is_nan_however_far_the_policy_is_from_its_reference(name: LossName, far: float) -> None:
    """The distance has either sign, beside a normal group in the batch; exp(120) exceeds 32-bit floats."""
    for chosen, rejected in ((far, -far), (-far, far), (far, far)):
        policy = torch.tensor([rejected, chosen, 0.1, 0.2], requires_grad=True)
        some = best_and_worst([8, 8])._replace(policy=policy)
        terms = loss_of(name, sft_weight=1.0)(some)
        terms.loss.backward()  # type: ignore[no-untyped-call]
        assert policy.grad is not None
        assert all(bool(value.isfinite()) for value in terms)
        assert bool(policy.grad.isfinite().all())


@pytest.mark.parametrize("n", [2, 128])
def test_a_hopeless_group_beside_a_sure_one_spoils_nothing(n: int) -> None:
    """At n = 128 the targets of candidates that always lose are exp(-133) of those that always win."""
    wins = torch.tensor([0.0, 0.0, 1.0, 1.0])
    some = best_and_worst([n, n])._replace(policy=torch.tensor([-3.0, -1.0, -2.0, -2.0]), wins=wins)
    terms = gvpo(some, tilt=tilt(n))
    assert terms.loss.item() == pytest.approx(0.5, rel=1e-5)
    assert terms.sft.item() == pytest.approx(2, rel=1e-5)


def simulated(n: int, groups: int = 200_000) -> GroupLogprobs:
    """Returns the best and worst of groups under best-of-n's own distribution: log pi_n/pi_0 = log n + (n - 1) log
    U."""
    generator = torch.Generator().manual_seed(n)
    u = torch.rand(groups, n, generator=generator, dtype=torch.float64)
    reference_chosen, reference_rejected = torch.full((groups,), -40.0), torch.full((groups,), -60.0)

    def distribution(u: Tensor) -> Tensor:
        return math.log(n) + (n - 1) * u.log()

    return pairs(
        reference_chosen + distribution(u.amax(1)),
        reference_rejected + distribution(u.amin(1)),
        reference_chosen,
        reference_rejected,
        torch.full((groups,), n),
    )


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_best_of_n_itself_has_the_target_margin_and_a_contrast_of_one(n: int) -> None:
    some = simulated(n)
    standard_error = math.sqrt(pair_target_variance(n) / len(some.best))
    terms = bonbon(some)
    assert terms.margin.item() == pytest.approx(pair_target(n), abs=4 * standard_error)
    assert terms.contrast.item() == pytest.approx(1, abs=0.05)
    assert ipo(some).loss.item() == pytest.approx(pair_target_variance(n), rel=0.05)


@pytest.mark.parametrize("name", ["bonbon", "paper", "ipo"])
def test_gradient_descent_on_one_shift_ends_at_the_target(name: LossName) -> None:
    """A constant shift of the rejected log-probabilities that minimises the loss moves the margins' mean to the
    target."""
    some = simulated(8, groups=2000)
    rejected = torch.zeros(len(some.policy)).index_fill(0, some.worst, 1.0)
    shift = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([shift], max_iter=50, line_search_fn="strong_wolfe")

    def shifted() -> GroupLogprobs:
        return some._replace(policy=some.policy - shift * rejected)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of(name)(shifted()).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    assert margins(shifted()).mean().item() == pytest.approx(pair_target(8), abs=1e-2)


def test_contrasts_depend_on_the_margin_alone() -> None:
    """Moving a group's candidates together, or policy and reference together, changes no contrast term."""
    some = batch()
    together = some._replace(policy=some.policy + 3)
    rescaled = some._replace(policy=some.policy - 2, reference=some.reference - 2)
    for name in EVERY_LOSS:
        contrast = loss_of(name)(some).contrast
        assert loss_of(name)(together).contrast.item() == pytest.approx(contrast.item())
        assert loss_of(name)(rescaled).contrast.item() == pytest.approx(contrast.item())


def test_mixed_n_is_the_mean_of_each_group_alone() -> None:
    some, pair = batch(), torch.zeros(2, dtype=torch.long)
    alone = [GroupLogprobs(*(field[place : place + 2] for field in some))._replace(group=pair) for place in (0, 2)]
    for name in EVERY_LOSS:
        loss = loss_of(name, sft_weight=0.1)
        assert loss(some).loss.item() == pytest.approx(sum(loss(one).loss.item() for one in alone) / 2)


def test_only_the_loss_carries_a_gradient() -> None:
    some = batch()
    for name in EVERY_LOSS:
        terms = loss_of(name)(some._replace(policy=some.policy.clone().requires_grad_()))
        assert [field.requires_grad for field in terms] == [True] + [False] * 6
