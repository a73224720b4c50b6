"""Tests of checkpoints: what a stage has reached survives a restart."""

import math
from pathlib import Path

from bonbon.settings import TrainSettings
from tests.support.models.learners import learner_of, nudge
from trainer.training.checkpoint import Checkpoint, Checkpoints


def test_a_stage_goes_on_with_the_policy_that_it_kept_before_any_gain_was_known(base: Path, tmp_path: Path) -> None:
    """The first policy is kept although its value is minus infinity, and the first one with a value replaces it."""
    learner = learner_of(base, TrainSettings())
    checkpoints = Checkpoints(tmp_path, 1, learner.accelerator)
    empty = Checkpoint(step=1, tokens=7)
    checkpoints.save(empty, learner)
    assert checkpoints.load(learner) == empty
    kept = Checkpoint(step=2)
    kept.see(0.25, learner.weights, value=-math.inf)
    checkpoints.save(kept, learner)
    nudge(learner)
    resumed = checkpoints.load(learner)
    assert resumed is not None
    assert (resumed.best_step, resumed.best_gain, resumed.best_value) == (2, 0.25, -math.inf)
    resumed.step = 3
    resumed.see(0.1, learner.weights)
    assert (resumed.best_step, resumed.best_gain) == (3, 0.1)
