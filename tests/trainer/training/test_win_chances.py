"""Tests of unbiased estimates of a candidate's chance to win against the base's draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bonbon.errors import UserError
from tests.support.data.written_groups import group_row, groups_of, write_groups
from trainer.data.groups import Groups, win_chances

Array = NDArray[np.float64]
RUNS = 20_000


def centred(values: Array) -> Array:
    """Subtracts the mean of the last axis."""
    return np.asarray(values - values.mean(-1, keepdims=True))


def test_by_hand() -> None:
    """A candidate of the base beats those below it and ties with itself."""
    np.testing.assert_allclose(win_chances(np.arange(4.0), np.arange(4.0)), [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(win_chances(np.array([1.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0])), [1 / 3, 1 / 3, 5 / 6])
    np.testing.assert_allclose(win_chances(np.array([-1.0, 0.5, 9.0]), np.array([0.0, 1.0])), [0.0, 0.5, 1.0])
    assert np.isnan(win_chances(np.array([1.0]), np.empty(0))).all()


@pytest.mark.parametrize("levels", [None, 3], ids=["continuous", "ties"])
@pytest.mark.parametrize("groups", [1, 3])
def test_differences_among_the_bases_own_candidates_are_unbiased(groups: int, levels: int | None) -> None:
    """Each candidate's chance minus its group's mean is averaged over all other candidates that it may be drawn with.

    Whatever the group's size: ranks over n + 1 would give 4/5 of every difference for groups of four. An error of more
    than five standard errors happens once in a million.
    """
    n, rng = 4, np.random.default_rng(groups)
    draws = rng.random((RUNS, groups * n))
    rewards = draws if levels is None else np.floor(draws * levels)
    truth = draws if levels is None else (rewards + 0.5) / levels
    found = np.array([win_chances(row[:n], np.sort(row)) for row in rewards])
    error = centred(found) - centred(truth[:, :n])
    for third in range(3):
        some = error[np.floor(3 * truth[:, 0]) == third, 0]
        assert abs(some.mean()) < 5 * some.std() / len(some) ** 0.5
    slope = (centred(found) * centred(truth[:, :n])).sum() / (centred(truth[:, :n]) ** 2).sum()
    assert slope == pytest.approx(1, abs=0.02)


def test_chances_of_others_against_the_bases_candidates_are_unbiased() -> None:
    """A candidate of another policy is not among its opponents."""
    rng = np.random.default_rng(1)
    ours, base = rng.random(RUNS) ** 0.2, np.sort(rng.random((RUNS, 4)))
    error = np.array([win_chances(ours[i : i + 1], base[i])[0] for i in range(RUNS)]) - ours
    for low in (0.0, 0.5, 0.9):
        some = error[ours >= low]
        assert abs(some.mean()) < 5 * some.std() / len(some) ** 0.5


def test_all_groups_of_a_prompt_are_one_pool(tmp_path: Path) -> None:
    """The pool contains neither groups of other prompts nor groups of a version, which are compared with it."""
    groups = groups_of(
        tmp_path / "groups.parquet",
        [
            group_row([0.0, 2.0]),
            group_row([1.0, 3.0], group_id="1"),
            group_row([-5.0, 9.0], prompt_digest="q"),
            group_row([0.5, 2.0, 7.0], version="tiny-bonbon-0001"),
        ],
    )
    np.testing.assert_allclose(groups.wins[:4], [0.125, 0.625, 0.375, 0.875])
    np.testing.assert_allclose(groups.wins[4:6], [0.25, 0.75])
    np.testing.assert_allclose(groups.wins[6:], [0.25, 0.625, 1.0])
    assert groups.by_base.tolist() == [True, True, True, False]
    assert groups.comparable.all()


@pytest.mark.parametrize(
    "changes",
    [{"stop": ["\n"]}, {"stop": ["\n", "."]}, {"max_tokens": 9}, {"temperature": 0.7}, {"prompt_digest": "q"}],
    ids=["stop", "stops", "max_tokens", "temperature", "prompt"],
)
def test_what_was_drawn_otherwise_is_another_pool(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Groups with other sampling settings are not compared, so the chances of a version's candidates are unknown."""
    rows = [
        group_row([0.0, 2.0], stop=["."]),
        group_row([1.0, 3.0], **{"stop": ["."], **changes}),
        group_row([1.0, 3.0], version="tiny-bonbon-0001", **{"stop": ["."], **changes}),
        group_row([1.0, 3.0], version="tiny-bonbon-0001", stop=["!"]),
    ]
    groups = groups_of(tmp_path / "groups.parquet", rows)
    np.testing.assert_allclose(groups.wins[:4], [0.25, 0.75, 0.25, 0.75])
    np.testing.assert_allclose(groups.wins[4:6], [0.25, 0.75])
    assert np.isnan(groups.wins[6:]).all()
    assert groups.comparable.tolist() == [True, True, True, False]


def test_draws_of_a_training_are_compared_with_what_is_logged(tmp_path: Path) -> None:
    """The draws are in a separate file without groups of the base."""
    logged = groups_of(tmp_path / "logged.parquet", [group_row([0.0, 1.0, 2.0, 3.0])])
    file = write_groups(tmp_path / "drawn.parquet", [group_row([2.5, 9.0], version="round-1-100")])
    drawn = Groups.read(file, base="tiny", opponents=logged.opponents)
    np.testing.assert_allclose(drawn.wins, [0.75, 1.0])
    both = logged + drawn
    assert (len(both), both.n.tolist(), both.by_base.tolist()) == (2, [4, 2], [True, False])
    np.testing.assert_allclose(both.wins, [0.125, 0.375, 0.625, 0.875, 0.75, 1.0])
    assert [both.completions[place].tolist() for place in both.candidates_of(1)] == [[4, 1], [5, 1]]
    assert both.prompts[1].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n": 1}, "group 0+1 has fewer than two candidates"),
        ({"n": 3}, "group 0+1 does not have as many candidates as its n says"),
        ({"rewards": [0.0, 2.0, 1.0, 3.0]}, "not in the order of their rewards"),
        ({"rewards": [0.0, 1.0, 2.0, float("nan")]}, "reward that is not finite"),
        ({"logprobs": [-1.0, -1.0, -1.0, float("-inf")]}, "log-probability that is not finite"),
        ({"temperature": 0.0}, "drawn greedily"),
        ({"prompt_token_ids": []}, "empty prompt"),
    ],
)
def test_groups_that_cannot_be_trained_on_are_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    rows = [group_row([0.0, 1.0]), group_row([0.0, 1.0, 2.0, 3.0]) | changes]
    with pytest.raises(UserError, match=rf"1 of 2 groups cannot be trained on: .*{match}.*; take a new snapshot"):
        groups_of(tmp_path / "groups.parquet", rows)


def test_tied_groups_are_read(tmp_path: Path) -> None:
    groups = groups_of(tmp_path / "groups.parquet", [group_row([1.0, 1.0, 1.0]), group_row([0.0, 1.0, 1.0])])
    assert groups.below.tolist() == [0, 1]
    assert groups.ranks.tolist() == [2, 2, 2, 1, 2.5, 2.5]
