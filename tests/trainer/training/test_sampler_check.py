"""Tests of the sampler check: it detects groups of another policy and tolerates arithmetic noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bonbon.errors import UserError
from tests.support.data.written_groups import group_row, groups_of
from trainer.data.groups import Groups
from trainer.training.sampler_check import MAX_GROUPS, check_sampler, checked_rows

LENGTH, GROUPS, N = 160, 200, 8
NOISE = 0.001
"""In nats per token, for each policy that computes in 16 bits."""


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Groups:
    """Groups with answers of 160 tokens; every second group belongs to a version."""
    rng = np.random.default_rng(0)
    rows = [
        group_row(
            list(range(N)),
            candidates=[[4] * LENGTH] * N,
            logprobs=rng.normal(-300, 40, N).tolist(),
            version=("tiny", "tiny-bonbon-0001")[number % 2],
        )
        for number in range(GROUPS)
    ]
    return groups_of(tmp_path_factory.mktemp("groups") / "groups.parquet", rows)


def check(groups: Groups, gaps: NDArray[np.float64], *, noise: float = NOISE, by_base: bool = True) -> float:
    """Checks the groups as if the trainer had computed the logged log-probabilities minus `gaps`."""
    policy = torch.from_numpy(groups.logprobs - gaps).float()
    rows = checked_rows(groups, by_base=by_base)
    return check_sampler(groups, rows, policy, limit=0.1, noise=noise, name="tiny")


def rounding(per_token: float, seed: int) -> NDArray[np.float64]:
    """Returns the effect of 16-bit arithmetic on sums over answers: either sign, and a mean of half its variance."""
    variance = 2 * per_token * LENGTH
    return np.random.default_rng(seed).normal(per_token * LENGTH, variance**0.5, GROUPS * N)


def log_ratios(kl: float, seed: int) -> NDArray[np.float64]:
    """Returns log ratios of a sampler's own draws to another policy that is `kl` nats per answer away."""
    return np.random.default_rng(seed).normal(kl, (2 * kl) ** 0.5, GROUPS * N)


def test_the_right_policy_passes(groups: Groups) -> None:
    """The sums of the engine and the trainer differ by 32-bit rounding only."""
    found = check(groups, np.random.default_rng(1).normal(0, 1e-4, GROUPS * N))
    assert abs(found) < 1e-4


@pytest.mark.parametrize("seed", range(5))
def test_the_noise_of_16_bits_passes(groups: Groups, seed: int) -> None:
    """Engine and trainer use bf16, so the log-probabilities of answers are off by half a nat each."""
    assert np.abs(rounding(0.001, seed)).mean() > 0.4
    check(groups, rounding(0.001, seed))
    check(groups, rounding(0.002, seed), noise=2 * NOISE)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [NOISE, 2 * NOISE])
def test_another_version_is_caught_among_the_noise(groups: Groups, seed: int, noise: float) -> None:
    """The other version is 1.2 nats per answer away, like best-of-8, which is .0075 per token."""
    gaps = log_ratios(1.2, seed) + rounding(noise, seed + 100)
    with pytest.raises(UserError, match=r"100 groups were logged with log-probabilities that are 1\.\d\d nats") as told:
        check(groups, gaps, noise=noise)
    assert told.value.param == "train.max_sampler_gap"
    assert "tiny did not draw them" in str(told.value)
    assert "max_sampler_gap = 0.1" in str(told.value)


def test_a_version_a_third_as_far_is_caught_in_32_bits(groups: Groups) -> None:
    with pytest.raises(UserError, match="did not draw them"):
        check(groups, log_ratios(0.5, 0))


def test_groups_that_were_drawn_by_nobody_in_particular_pass_only_if_that_may_be_chance(groups: Groups) -> None:
    """A mean that may exceed the limit by chance is not an error."""
    wide = np.random.default_rng(0).normal(0.5, 30, GROUPS * N)
    check(groups, wide)


def test_the_bases_groups_and_a_versions_are_looked_at_apart(groups: Groups) -> None:
    gaps = log_ratios(1.2, 0) * ~np.repeat(groups.by_base, N)
    check(groups, gaps)
    with pytest.raises(UserError, match="did not draw them"):
        check(groups, gaps, by_base=False)


def test_no_more_groups_than_needed_and_all_over_the_log(tmp_path: Path) -> None:
    """They include a sampler that was replaced half-way through the log."""
    some = groups_of(tmp_path / "groups.parquet", [group_row([0.0, 1.0]) for _ in range(1000)])
    rows = checked_rows(some, by_base=True)
    assert len(rows) == len(set(rows.tolist())) == MAX_GROUPS
    assert (rows[0], rows[-1]) == (0, 999)
    assert int((rows < 500).sum()) == MAX_GROUPS // 2
    assert not len(checked_rows(some, by_base=False))
    assert check_sampler(some, np.array([], int), torch.zeros(0), limit=0.1, noise=0, name="tiny") == 0
