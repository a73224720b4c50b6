"""Tests of the groups that an optimiser step combines, and of the candidates that it learns from."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from bonbon.pairs.reading.snapshot import Split
from bonbon.settings import TrainSettings
from tests.support.data.written_groups import group_row, groups_of
from trainer.data.batches import by_length, epoch_steps
from trainer.data.groups import Groups
from trainer.training.learning.candidate_selection import candidates, trainable_rows
from trainer.training.learning.loss import LossName
from trainer.training.stages.schedule import count_steps, default_learning_rate, learning_rate_factor, step_seed

PAIR_LOSSES: list[LossName] = ["bonbon", "paper", "sft", "ipo", "dpo"]


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    rows = np.arange(100, 203)
    first = epoch_steps(rows, 8, seed=0, epoch=0)
    again = epoch_steps(rows, 8, seed=0, epoch=0)
    later = epoch_steps(rows, 8, seed=0, epoch=1)
    other = epoch_steps(rows, 8, seed=1, epoch=0)
    assert [step.tolist() for step in first] == [step.tolist() for step in again]
    assert len({tuple(np.concatenate(steps)) for steps in (first, later, other)}) == 3
    for steps in (first, later):
        taken = np.concatenate(steps).tolist()
        assert [len(step) for step in steps] == [8] * 12
        assert len(set(taken)) == 96
        assert set(taken) <= set(rows.tolist())
    left_out = [set(rows.tolist()) - set(np.concatenate(steps).tolist()) for steps in (first, later)]
    assert left_out[0] != left_out[1]


def test_which_groups_meet_has_nothing_to_do_with_their_lengths() -> None:
    """A step's mean length varies like that of groups drawn at random.

    The log may come sorted by length, and lengths be as different as they like.
    """
    lengths = np.sort(np.random.default_rng(0).lognormal(4, 1, 4000))
    means = [
        lengths[step].mean() for epoch in range(5) for step in epoch_steps(np.arange(4000), 16, seed=0, epoch=epoch)
    ]
    expected = lengths.std() / 4
    assert np.std(means) == pytest.approx(expected, rel=0.1)
    # Nor does a step's place in its epoch: rank correlation with a two-sided error of one in a thousand.
    assert scipy.stats.spearmanr(np.arange(len(means)) % 250, means).pvalue > 1e-3


def test_forward_passes_take_every_place_once_the_longest_first() -> None:
    batches = by_length(np.array([5, 9, 1, 7, 7]), 2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [4, 0], [2]]


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    """Groups of four candidates in turn: distinct, a tie for the best, all tied, a version's, and one without
    opponents.
    """
    kinds = [
        group_row([0.0, 1.0, 2.0, 3.0]),
        group_row([0.0, 1.0, 2.0, 2.0]),
        group_row([1.0, 1.0, 1.0]),
        group_row([0.0, 1.0], version="tiny-bonbon-0001"),
        group_row([0.0, 1.0], version="tiny-bonbon-0001", prompt_digest="q"),
    ]
    splits = (Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.TEST)
    rows = [kind | {"split": str(split)} for split in splits for kind in kinds]
    return groups_of(tmp_path / "groups.parquet", rows)


def test_gvpo_learns_from_all_that_can_be_compared_with_the_base(groups: Groups) -> None:
    """It includes tied groups and a version's, but none of another split."""
    assert trainable_rows(groups, "gvpo").tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    chosen = candidates(groups, np.array([3, 1]), "gvpo", seed=0, step=0)
    assert [some.tolist() for some in chosen] == [[11, 12], [4, 5, 6, 7]]


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_pairs_are_of_the_bases_groups_that_have_a_best(groups: Groups, loss: LossName) -> None:
    assert trainable_rows(groups, loss).tolist() == [0, 1, 5, 6]


@pytest.mark.parametrize("loss", ["paper", "sft", "ipo", "dpo"])
def test_the_literatures_pairs_are_the_worst_and_the_best(groups: Groups, loss: LossName) -> None:
    chosen = candidates(groups, np.array([1, 0]), loss, seed=0, step=5)
    assert [pair.tolist() for pair in chosen] == [[4, 7], [0, 3]]


def test_bonbons_other_is_drawn_from_all_below_the_best(groups: Groups) -> None:
    """Each of them is drawn equally often, and never one that ties with the best."""
    rows = np.array([0, 1])
    drawn = np.stack([candidates(groups, rows, "bonbon", seed=1, step=step) for step in range(1500)])
    assert set(drawn[:, 0, 1].tolist()) == {3}
    assert set(drawn[:, 1, 1].tolist()) == {7}
    for group, below in ((0, 3), (1, 2)):
        counts = np.bincount(drawn[:, group, 0] - 4 * group, minlength=4)
        assert not counts[below:].any()
        assert scipy.stats.chisquare(counts[:below]).pvalue > 1e-4
    again = np.stack(candidates(groups, rows, "bonbon", seed=1, step=7))
    np.testing.assert_array_equal(drawn[7], again)
    alone = candidates(groups, rows[1:], "bonbon", seed=1, step=7)
    np.testing.assert_array_equal(alone[0], again[1])


@pytest.mark.parametrize(
    ("groups", "epochs", "steps"), [(52, 2.0, 6), (52, 0.5, 2), (16, 1.0, 1), (160, 0.01, 1), (160, 1.25, 13)]
)
def test_steps_are_whole_batches(groups: int, epochs: float, steps: int) -> None:
    assert count_steps(TrainSettings(batch_size=16, epochs=epochs), groups) == steps


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:11] == pytest.approx([i / 11 for i in range(1, 11)] + [1.0])
    assert np.diff(factors[10:]) == pytest.approx(-1 / 90)
    assert factors[-1] == pytest.approx(1 / 90)
    assert learning_rate_factor(0, 1, 0) == 1


def test_the_default_learning_rate_falls_with_width() -> None:
    assert default_learning_rate("lora", 2000) == pytest.approx(5e-4)
    assert default_learning_rate("lora", 4096) == pytest.approx(2.86e-4, rel=1e-2)
    assert default_learning_rate("full", 2000) == pytest.approx(5e-5)


def test_no_two_steps_share_their_random_numbers() -> None:
    seeds = {step_seed(seed, stage, step) for seed in range(5) for stage in range(2) for step in range(50)}
    assert len(seeds) == 500
    assert step_seed(1, 0, 7) == step_seed(1, 0, 7)
