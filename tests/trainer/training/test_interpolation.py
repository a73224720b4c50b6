"""Tests of the interpolation between the base and the trained policy, by the policy's draws."""

import json
from pathlib import Path

import numpy as np
import pytest

from bonbon.progress import Bars
from bonbon.settings import TrainSettings
from tests.support.data.sampled_groups import make_base
from tests.support.models.learners import learner_of, nudge
from trainer.data.groups import Rows
from trainer.training.learning.learner import Weights
from trainer.training.stages.interpolation import GRID, SHARES, Interpolated, Tried, best_share, interpolate
from trainer.training.stages.validation import Drawer, DrawnGain

FAR = 1000.0


def tried(linear: float, square: float, spread: float, *, error: float = 0.1, noise: float = 0.0) -> list[Tried]:
    """Returns a gain of linear s - square s^2 and a KL of spread s^2 at every share s."""
    rng = np.random.default_rng(0)
    return [Tried(s, linear * s - square * s**2 + noise * rng.normal(), error, 0.5, spread * s**2) for s in SHARES]


@pytest.mark.parametrize(
    ("linear", "square", "share"),
    [(1.0, 1.0, 0.5), (1.0, 0.1, 1.0), (2.0, 1.25, 0.8), (-0.5, 0.5, 0.0)],
    ids=["half", "all the way", "four fifths", "not at all"],
)
def test_the_top_of_the_gains_curve_is_found(linear: float, square: float, share: float) -> None:
    found = best_share(tried(linear, square, 2.0), FAR)
    assert found.share == pytest.approx(share, abs=1 / GRID)
    assert found.gain == pytest.approx(linear * share - square * share**2, abs=1e-3)
    assert found.kl == pytest.approx(2 * found.share**2, abs=1e-6)


def test_no_further_than_the_divergence_that_is_allowed() -> None:
    found = best_share(tried(2.0, 0.5, 4.0), 1.0)
    assert found.share == pytest.approx(0.5, abs=1 / GRID)
    assert found.kl <= 1.0
    assert best_share(tried(2.0, 0.5, 4.0), 0.0) == Interpolated(0.0, 0.0, 0.0)


def test_what_is_known_better_counts_for_more() -> None:
    """One gain is an outlier with a correspondingly large error."""
    some = tried(1.0, 1.0, 2.0, error=0.01)
    some[0] = Tried(1.0, 3.0, 10.0, 0.5, 2.0)
    assert best_share(some, FAR).share == pytest.approx(0.5, abs=0.05)


class Draws(Drawer):
    """Computes a policy's distance from the base from its weights; gains fall with the distance from 0.6."""

    def __init__(self, whole: Weights) -> None:
        self.whole, self.asked = whole, list[tuple[int, float, int]]()

    def gain(self, number: int, weights: Weights, rows: Rows, count: int, tilt: float) -> DrawnGain:
        second = next(name for name in weights if "lora_B" in name)
        share = float((weights[second].norm() / self.whole[second].norm()).item())
        self.asked.append((number, round(share, 3), count))
        return DrawnGain(1.2 * share - share**2, 0.01, 0.6, share**2, 4, 10)


def test_it_is_drawn_at_every_share_and_remembered(tmp_path: Path) -> None:
    learner = learner_of(make_base(tmp_path / "base"), TrainSettings(lora_rank=4))
    nudge(learner)
    weights = learner.weights()
    drawer = Draws(learner.interpolated(weights, 1.0))
    found = [
        interpolate(
            learner,
            drawer,
            weights,
            np.arange(9),
            draws=8,
            tilt=2.0,
            max_kl=FAR,
            run_dir=tmp_path,
            progress=Bars(show=False),
        )
        for _ in range(2)
    ]
    assert drawer.asked == [(number, share, 8) for number, share in enumerate(SHARES)], "once, not twice"
    assert found[0] == found[1]
    assert found[0].share == pytest.approx(0.6, abs=0.01)
    written = json.loads((tmp_path / "interpolation.json").read_text())
    assert [one["share"] for one in written["tried"]] == list(SHARES)
