"""The losses against hand-computed values, the theory's numbers and simulated best-of-n groups."""

import math

import pytest
import torch
from torch import Tensor

from bonbon.theory import (
    best_of_n_kl,
    pair_target,
    pair_target_variance,
    rank_pair_target,
    rank_pair_variance,
    rank_targets,
)
from trainer.training.loss import Loss, PairLogprobs, bonbon, dpo, ipo, make_loss, paper, sft, target_variances, targets

NAMES = ["bonbon", "paper", "sft", "ipo", "dpo"]


def pairs(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, n: Tensor
) -> PairLogprobs:
    """Best and worst of groups of n."""
    return PairLogprobs(
        chosen, rejected, reference_chosen, reference_rejected, n, n, torch.ones_like(n), n, below=n - 1
    )


def best_and_worst(*n: int) -> PairLogprobs:
    zeros = torch.zeros(len(n))
    return pairs(zeros, zeros, zeros, zeros, torch.tensor(n))


def batch() -> PairLogprobs:
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
    torch.testing.assert_close(targets(best_and_worst(*ns)), torch.tensor([pair_target(n) for n in ns]))
    torch.testing.assert_close(
        target_variances(best_and_worst(*ns)), torch.tensor([pair_target_variance(n) for n in ns])
    )


def test_targets_of_any_two_ranks_are_the_theorys() -> None:
    ranks = [(upper, lower) for upper in range(2, 9) for lower in range(1, upper)]
    upper, lower = torch.tensor(ranks).T
    some = best_and_worst(*[8] * len(ranks))._replace(chosen_rank=upper, rejected_rank=lower)
    torch.testing.assert_close(targets(some), torch.tensor([rank_pair_target(*pair, 8) for pair in ranks]))
    torch.testing.assert_close(target_variances(some), torch.tensor([rank_pair_variance(*pair, 8) for pair in ranks]))


@pytest.mark.parametrize(
    ("n", "beta", "target", "sd"),
    [(2, 0.5, 1, 1), (3, 0.166667, 3, 2.24), (8, 0.0275482, 18.15, 8.61), (64, 0.00167852, 297.9, 80.4)],
)
def test_targets_are_the_papers(n: int, beta: float, target: float, sd: float) -> None:
    tensor = best_and_worst(n)
    assert targets(tensor).item() == pytest.approx(target, rel=2e-4)
    assert 1 / (2 * targets(tensor).item()) == pytest.approx(beta, rel=1e-5)
    assert math.sqrt(target_variances(tensor).item()) == pytest.approx(sd, rel=2e-3)


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


def test_names_and_weights() -> None:
    some = batch()
    for name, loss in zip(NAMES, (bonbon, paper, sft, ipo, dpo), strict=True):
        assert torch.equal(make_loss(name)(some).loss, loss(some).loss)
    assert torch.equal(make_loss("bonbon", alpha=1.0)(some).loss, sft(some).loss)
    assert torch.equal(make_loss("bonbon", alpha=0.5)(some).loss, bonbon(some).loss)
    assert torch.equal(make_loss("paper", alpha=0.0)(some).loss, ipo(some).loss)
    assert torch.equal(make_loss("dpo", dpo_beta=2.0)(some).loss, dpo(some, beta=2.0).loss)


def gradients(loss: Loss, margin: float, n: int = 8) -> tuple[float, float]:
    """Gradients by chosen and rejected log-probability of one pair with this margin."""
    chosen, rejected = torch.tensor([margin - 50.0]).requires_grad_(), torch.tensor([-50.0]).requires_grad_()
    reference = torch.tensor([-50.0])
    loss(pairs(chosen, rejected, reference, reference, torch.tensor([n]))).loss.backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None
    return chosen.grad.item(), 0.0 if rejected.grad is None else rejected.grad.item()


@pytest.mark.parametrize("name", ["bonbon", "paper", "ipo", "dpo"])
def test_below_the_target_the_margin_grows(name: str) -> None:
    by_chosen, by_rejected = gradients(make_loss(name), margin=0.0)
    assert by_chosen < 0 < by_rejected


@pytest.mark.parametrize("name", ["bonbon", "paper", "ipo"])
def test_above_the_target_the_rejected_recovers(name: str) -> None:
    _, by_rejected = gradients(make_loss(name), margin=30.0)
    assert by_rejected < 0


def test_at_the_target_only_sft_pulls() -> None:
    assert gradients(ipo, pair_target(8)) == pytest.approx((0, 0), abs=1e-5)
    assert gradients(bonbon, pair_target(8)) == pytest.approx((-0.5, 0), abs=1e-5)
    assert gradients(sft, 0.0) == (-1.0, 0.0)


def simulated(n: int, groups: int = 200_000) -> PairLogprobs:
    """Best and worst of groups under best-of-n's own law: log pi_n/pi_0 = log n + (n - 1) log U."""
    generator = torch.Generator().manual_seed(n)
    u = torch.rand(groups, n, generator=generator, dtype=torch.float64)
    reference_chosen, reference_rejected = torch.full((groups,), -40.0), torch.full((groups,), -60.0)

    def law(u: Tensor) -> Tensor:
        return math.log(n) + (n - 1) * u.log()

    return pairs(
        reference_chosen + law(u.amax(1)),
        reference_rejected + law(u.amin(1)),
        reference_chosen,
        reference_rejected,
        torch.full((groups,), n),
    )


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_best_of_n_itself_has_the_target_margin_and_a_contrast_of_one(n: int) -> None:
    some = simulated(n)
    standard_error = math.sqrt(pair_target_variance(n) / len(some.n))
    terms = bonbon(some)
    assert terms.margin.item() == pytest.approx(pair_target(n), abs=4 * standard_error)
    assert terms.contrast.item() == pytest.approx(1, abs=0.05)
    assert ipo(some).loss.item() == pytest.approx(pair_target_variance(n), rel=0.05)


@pytest.mark.parametrize("name", ["bonbon", "paper", "ipo"])
def test_gradient_descent_on_one_shift_ends_at_the_target(name: str) -> None:
    """The constant shift of the rejected log-probabilities that minimises the loss puts the margins' mean on target."""
    pairs = simulated(8, groups=2000)
    shift = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([shift], max_iter=50, line_search_fn="strong_wolfe")

    def shifted() -> PairLogprobs:
        return pairs._replace(rejected=pairs.rejected - shift)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = make_loss(name)(shifted()).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    assert shifted().margin.mean().item() == pytest.approx(pair_target(8), abs=1e-2)


def test_contrasts_depend_on_the_margin_alone() -> None:
    """Moving chosen and rejected together, or policy and reference together, changes no contrast term."""
    pairs = batch()
    together = pairs._replace(chosen=pairs.chosen + 3, rejected=pairs.rejected + 3)
    rescaled = pairs._replace(chosen=pairs.chosen - 2, reference_chosen=pairs.reference_chosen - 2)
    for name in NAMES:
        contrast = make_loss(name)(pairs).contrast
        assert make_loss(name)(together).contrast.item() == pytest.approx(contrast.item())
        assert make_loss(name)(rescaled).contrast.item() == pytest.approx(contrast.item())


def test_mixed_n_is_the_mean_of_each_pair_alone() -> None:
    pairs = batch()
    alone = [PairLogprobs(*(field[i : i + 1] for field in pairs)) for i in range(2)]
    for name in NAMES:
        loss = make_loss(name)
        assert loss(pairs).loss.item() == pytest.approx(sum(loss(pair).loss.item() for pair in alone) / 2)


def test_only_the_loss_carries_a_gradient() -> None:
    pairs = batch()
    terms = bonbon(pairs._replace(chosen=pairs.chosen.clone().requires_grad_()))
    assert [field.requires_grad for field in terms] == [True] + [False] * 6


def pooled(log_ratios: Tensor, ranks: Tensor, n: int, size: int) -> PairLogprobs:
    """Best and a random other of groups of `n` that were drawn from a pool with these ranks, [groups, n] both."""
    best = ranks.argmax(dim=1, keepdim=True)
    others = ranks.argsort(dim=1)[:, :-1]
    other = others.gather(1, torch.arange(len(ranks))[:, None] % (n - 1))
    zeros, count = torch.zeros(len(ranks)), torch.full((len(ranks),), n)
    return PairLogprobs(
        chosen=log_ratios.gather(1, best)[:, 0],
        rejected=log_ratios.gather(1, other)[:, 0],
        reference_chosen=zeros,
        reference_rejected=zeros,
        n=count,
        chosen_rank=ranks.gather(1, best)[:, 0],
        rejected_rank=ranks.gather(1, other)[:, 0],
        ranked=torch.full((len(ranks),), size),
        below=count - 1,
    )


def a_pool(n: int = 8, groups: int = 512) -> tuple[Tensor, Tensor]:
    """Ranks in a random pool, and best-of-n's log pi_n/pi_0 of each, [groups, n] both."""
    ranks = torch.randperm(n * groups, generator=torch.Generator().manual_seed(n)).view(groups, n) + 1
    return ranks, torch.tensor(rank_targets(n * groups, n))[ranks - 1].float()


def test_where_a_prompt_has_a_pool_the_loss_is_a_divergence_that_is_zero_at_best_of_n() -> None:
    ranks, best_of_n = a_pool()
    at = bonbon(pooled(best_of_n, ranks, 8, ranks.numel()))
    assert at.loss.item() == pytest.approx(0, abs=1e-5)
    assert at.contrast.item() == at.loss.item()
    for change in (-0.5, 0.5):
        assert bonbon(pooled(best_of_n + change, ranks, 8, ranks.numel())).loss.item() > 0.05
    assert bonbon(pooled(0 * best_of_n, ranks, 8, ranks.numel())).loss.item() == pytest.approx(
        best_of_n_kl(8), rel=0.1
    ), "the base is log n - (n-1)/n from best-of-n"


def test_a_number_for_alpha_does_without_the_pool() -> None:
    ranks, best_of_n = a_pool()
    some = pooled(best_of_n, ranks, 8, ranks.numel())
    contrast = ((some.margin - targets(some)).square() / target_variances(some)).mean()
    expected = 0.5 * -some.chosen.mean() + 0.5 * contrast
    assert bonbon(some, alpha=0.5).loss.item() == pytest.approx(expected.item(), rel=1e-5)
