"""Tests of gains measured on logged groups and on fresh draws, against policies with exactly known gains."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bonbon.pairs.reading.snapshot import Split
from bonbon.theory import best_gain, objective_gain, tilt, tilted_kl, tilted_win_rate
from tests.support.data.written_groups import group_row, groups_of, write_groups
from trainer.data.groups import Groups, Rows
from trainer.training.stages.validation import DrawnGain, drawn_gain, logged_gain, validation_rows

N = 8
GROUPS = 3000
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def chances() -> Array:
    """Returns true win chances of the base's candidates, which are also their rewards, [groups, n]."""
    return np.sort(np.random.default_rng(0).random((GROUPS, N)))


@pytest.fixture(scope="module")
def groups(chances: Array, tmp_path_factory: pytest.TempPathFactory) -> Groups:
    """Returns groups of distinct prompts, so that a candidate is compared with its own group only."""
    rows = [group_row(row.tolist(), prompt_digest=str(number)) for number, row in enumerate(chances)]
    return groups_of(tmp_path_factory.mktemp("groups") / "groups.parquet", rows)


def seen(groups: Groups, log_ratio: Array, *, c: float = tilt(N), rows: Rows | None = None) -> dict[str, float]:
    """Returns the gain on logged groups of the policy with these log ratios to the base."""
    reference = torch.full((len(groups.owners),), -50.0)
    some = np.arange(len(groups)) if rows is None else rows
    found = logged_gain(groups, some, reference + torch.from_numpy(log_ratio.ravel()).float(), reference, c)
    return {name: getattr(found, name) for name in ("gain", "forward", "margin", "target")}


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.15])
def test_the_gain_of_a_policy_near_the_base_needs_no_draws(groups: Groups, chances: Array, share: float) -> None:
    """The gain is c Cov(U, h) - Var(h) / 2, for the base tilted by a share of c, within a tenth of its exact value.

    Under the tilted base the win chances' mean and KL are known. The standard error of the mean of 3,000 groups is less
    than a hundredth of the gain.
    """
    c = share * tilt(N)
    exact = objective_gain(tilted_win_rate(c), tilted_kl(c), N)
    second_order = tilt(N) * c / 12 - c**2 / 24
    assert second_order == pytest.approx(exact, rel=0.1)
    assert seen(groups, c * chances)["gain"] == pytest.approx(second_order, rel=0.03)


def test_what_helps_nobody_costs_its_variance(groups: Groups) -> None:
    """The log ratio is independent of the reward."""
    noise = np.random.default_rng(1).normal(0, 0.5, (GROUPS, N))
    assert seen(groups, noise)["gain"] == pytest.approx(-0.125, abs=0.01)
    assert seen(groups, 0 * noise)["gain"] == pytest.approx(0, abs=1e-6)


def test_a_constant_changes_nothing_but_the_forward_gain(groups: Groups, chances: Array) -> None:
    """Logged answers do not reveal what a policy lost on other answers, except through `forward`."""
    there, lost = seen(groups, chances), seen(groups, chances - 2.0)
    assert lost["gain"] == pytest.approx(there["gain"], abs=1e-4)
    assert lost["margin"] == pytest.approx(there["margin"], abs=1e-4)
    assert lost["forward"] == pytest.approx(there["forward"] - 2, abs=1e-4)


def test_margin_and_target_are_those_of_the_training(groups: Groups, chances: Array) -> None:
    found = seen(groups, 3 * chances)
    assert found["margin"] == pytest.approx(3 * float((chances[:, -1] - chances[:, 0]).mean()), rel=1e-4)
    assert found["target"] == pytest.approx(tilt(N) * 7 / 8, rel=1e-4)


def test_only_the_groups_that_were_asked_for_are_looked_at(groups: Groups, chances: Array) -> None:
    half = chances * (np.arange(GROUPS) % 2)[:, None]
    odd, even = (seen(groups, half, rows=np.arange(start, GROUPS, 2)) for start in (1, 0))
    assert odd["gain"] > 0.3
    assert even["gain"] == pytest.approx(0, abs=1e-6)


def drawn(path: Path, rewards: Array, logged: Groups) -> Groups:
    """Returns a policy's draws for the prompts of `logged`, one per reward, [prompts, count]."""
    rows = [
        group_row(sorted(row.tolist()), prompt_digest=str(number), version="round-1-0")
        for number, row in enumerate(rewards)
    ]
    return Groups.read(write_groups(path, rows), base="tiny", opponents=logged.opponents)


def test_draws_of_the_best_policy_have_the_best_gain(groups: Groups, tmp_path: Path) -> None:
    """Two draws for each of 3,000 prompts are compared with the base's eight, within three standard errors."""
    c, rng = tilt(N), np.random.default_rng(2)
    u = np.log1p(rng.random((GROUPS, 2)) * math.expm1(c)) / c
    some = drawn(tmp_path / "drawn.parquet", u, groups)
    log_z = math.log(math.expm1(c) / c)
    reference = torch.full((2 * GROUPS,), -50.0)
    policy = reference + torch.from_numpy(c * some.rewards - log_z).float()
    found = drawn_gain(some, policy, reference, c)
    assert found.standard_error < 0.05
    assert found.gain == pytest.approx(best_gain(N), abs=3 * found.standard_error)
    assert found.win_rate == pytest.approx(tilted_win_rate(c), abs=0.01)
    assert found.kl == pytest.approx(tilted_kl(c), abs=0.05)
    assert found.tokens == int(some.tokens.sum()) == 2 * 2 * GROUPS
    assert found.draws == 2 * GROUPS
    assert found.gain == pytest.approx(objective_gain(found.win_rate, found.kl, N), abs=1e-6)


def test_pooled_gains_are_those_of_all_draws(groups: Groups, tmp_path: Path) -> None:
    c, rng = tilt(N), np.random.default_rng(4)
    rewards, ratios = rng.random((GROUPS, 8)), torch.from_numpy(rng.normal(1, 0.5, (GROUPS, 8))).float()

    def gain(name: str, first: int, last: int) -> DrawnGain:
        some = drawn(tmp_path / f"{name}.parquet", rewards[:, first:last], groups)
        ratio = torch.gather(ratios[:, first:last], 1, torch.from_numpy(rewards[:, first:last].argsort(1)))
        return drawn_gain(some, ratio.flatten(), torch.zeros(ratio.numel()), c)

    pooled, every = gain("two", 0, 2).pooled(gain("six", 2, 8)), gain("every", 0, 8)
    for name in ("gain", "win_rate", "kl", "draws", "tokens"):
        assert getattr(pooled, name) == pytest.approx(getattr(every, name)), name
    assert pooled.standard_error >= every.standard_error


def test_the_standard_error_is_over_prompts(groups: Groups, tmp_path: Path) -> None:
    """Draws for one prompt are correlated, so more of them do not reduce the error."""
    rng = np.random.default_rng(3)
    rewards = np.where(rng.random((400, 1)) < 0.5, 0.0, 1.0) + np.zeros((400, 6))
    some = drawn(tmp_path / "drawn.parquet", rewards, groups)
    reference = torch.zeros(2400)
    found = drawn_gain(some, reference, reference, 2.0)
    assert found.standard_error == pytest.approx(2 * 0.5 / 400**0.5, rel=0.05)
    one = drawn(tmp_path / "one.parquet", rewards[:1], groups)
    assert math.isnan(drawn_gain(one, reference[:6], reference[:6], 2.0).standard_error)


def test_validation_groups_are_the_bases_and_the_same_ones_for_a_seed(tmp_path: Path) -> None:
    splits = [Split.TRAIN, Split.VALIDATION, Split.TEST, Split.VALIDATION]
    rows = [
        group_row([0.0, 1.0], split=str(splits[number % 4]), version="v" if number % 8 == 3 else "tiny")
        for number in range(400)
    ]
    groups = groups_of(tmp_path / "groups.parquet", rows)
    every = validation_rows(groups, 0, limit=1000)
    assert every.tolist() == [row for row in range(400) if row % 4 == 1 or row % 8 == 7]
    some = validation_rows(groups, 0, limit=32)
    assert some.tolist() == sorted(set(some.tolist()))
    assert set(some.tolist()) < set(every.tolist())
    assert some.tolist() == validation_rows(groups, 0, limit=32).tolist()
    assert some.tolist() != validation_rows(groups, 1, limit=32).tolist()
