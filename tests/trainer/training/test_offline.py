"""Tests of the offline stage: its learning rate, the step that it keeps, and its resumption."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bonbon.errors import BonbonError
from bonbon.progress import Bars
from bonbon.settings import TrainSettings
from bonbon.theory import tilt
from tests.support.data.sampled_groups import make_snapshot
from tests.support.models.learners import learner_of, nudge
from trainer.data.groups import Groups
from trainer.training.checkpoint import Checkpoint, Checkpoints
from trainer.training.learning.candidate_selection import trainable_rows
from trainer.training.learning.learner import Learner
from trainer.training.metrics import MetricsLog, read_metrics
from trainer.training.stages.offline import PROBED, Offline, climb
from trainer.training.stages.schedule import default_learning_rate
from trainer.training.stages.validation import logged_gain, validation_rows


@pytest.fixture(scope="module")
def groups(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Groups:
    """52 groups for training and 25 for validation."""
    snapshot = make_snapshot(tmp_path_factory.mktemp("snapshots") / "first", base, temperatures=(1.0, 0.8))
    return Groups.read(snapshot.groups_file, base="tiny")


class Stage:
    """An offline stage with its own learner; `learns` and `wants` are the n of the loss and of the validation."""

    def __init__(
        self,
        base: Path,
        groups: Groups,
        run_dir: Path,
        *,
        learns: int = 4,
        wants: int = 4,
        looks: bool = True,
        **config: Any,
    ) -> None:
        # The bare contrast, whose minimum is the policy that validation prefers.
        defaults = {"lora_rank": 4, "lora_alpha": 8, "batch_size": 8, "micro_batch_size": 8, "precision": "no"}
        config = {"sft_weight": 0.0} | config
        settings = TrainSettings.model_validate(defaults | config)
        run_dir.mkdir(exist_ok=True)
        self.groups, self.run_dir, self.c = groups, run_dir, tilt(wants)
        self.learner: Learner = learner_of(base, settings, n=learns)
        self.learner.logprobs.try_sharing_prompts(groups)
        self.reference = self.learner.of_base(groups, np.arange(len(groups)), "")
        self.start = self.learner.weights()
        self.validation = validation_rows(groups, 0) if looks else np.array([], dtype=np.int64)
        self.offline = Offline(
            self.learner,
            self.start,
            groups,
            trainable_rows(groups, settings.loss),
            self.validation,
            self.reference,
            config=settings,
            tilt=self.c,
            run_dir=run_dir,
            progress=Bars(show=False),
        )

    def run(self) -> dict[str, Tensor]:
        with MetricsLog(self.run_dir) as log:
            return self.offline.run(log)

    def gain(self, weights: dict[str, Tensor]) -> float:
        self.learner.load(weights)
        policy = self.learner.of_policy(self.groups, self.validation, "")
        return logged_gain(self.groups, self.validation, policy, self.reference, self.c).gain

    def reported(self, name: str) -> dict[int, float]:
        """Returns a reported value by step."""
        return {line["step"]: line[name] for line in read_metrics(self.run_dir) if name in line}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_best_step_is_kept_and_not_the_last(base: Path, groups: Groups, tmp_path: Path) -> None:
    """The loss asks for a larger distance than validation prefers, so the gain rises and then falls."""
    stage = Stage(base, groups, tmp_path / "run", learns=32, wants=3, learning_rate=3e-3, epochs=10)
    kept = stage.run()
    gains = stage.reported("validation_gain")
    best_step = int(*stage.reported("kept_step").values())
    assert gains[best_step] == max(gains.values()) > gains[0] + 0.01
    assert 0 < best_step < max(gains)
    assert min(gains.values()) < 0
    assert stage.gain(kept) == pytest.approx(gains[best_step], abs=1e-5)
    assert stage.reported("kept_gain")[max(gains)] == gains[best_step]


def test_it_ends_when_nothing_more_is_gained(base: Path, groups: Groups, tmp_path: Path) -> None:
    """The first validation is the best; three more follow, and 48 of 60 steps are saved."""
    stage = Stage(base, groups, tmp_path / "run", learning_rate=3e-2, epochs=10)
    kept = stage.run()
    assert stage.offline.steps == 60
    gains = stage.reported("validation_gain")
    assert list(gains) == [0, 6, 12, 18]
    assert max(stage.reported("loss")) == 18
    assert max(gains, key=lambda step: gains[step]) == 0
    assert same(kept, stage.start)


def test_a_policy_that_learns_well_goes_on_to_the_end(base: Path, groups: Groups, tmp_path: Path) -> None:
    stage = Stage(base, groups, tmp_path / "run", learning_rate=3e-3, epochs=5)
    kept = stage.run()
    gains = stage.reported("validation_gain")
    assert max(gains) == max(stage.reported("loss")) == stage.offline.steps == 30
    assert gains[30] > 0.2
    assert stage.gain(kept) == pytest.approx(max(gains.values()), abs=1e-5)
    margins, targets = stage.reported("margin"), stage.reported("target")
    assert margins[30] > 0.2 * targets[30]
    assert stage.reported("validation_margin")[30] > 0.5


def test_without_validation_groups_the_last_step_is_kept_at_a_middling_rate(
    base: Path, groups: Groups, tmp_path: Path
) -> None:
    stage = Stage(base, groups, tmp_path / "run", looks=False)
    kept = stage.run()
    assert same(kept, stage.learner.weights())
    assert not same(kept, stage.start)
    assert stage.reported("validation_gain") == {}
    assert not (tmp_path / "run" / "probe.json").exists()
    rates = stage.reported("learning_rate")
    assert max(rates.values()) == pytest.approx(2 * default_learning_rate("lora", 32) * PROBED[2])


def test_the_probe_takes_the_rate_that_gains_most(base: Path, groups: Groups, tmp_path: Path) -> None:
    """The probe has no side effects: the run equals one with this rate configured."""
    stage = Stage(base, groups, tmp_path / "run")
    kept = stage.run()
    probe = json.loads((tmp_path / "run" / "probe.json").read_text())
    gains = {float(rate): gain for rate, gain in probe["gains"].items()}
    assert len(gains) >= 3, "it has tried one on either side"
    best = max(gains, key=lambda rate: gains[rate])
    assert min(gains) < best < max(gains)
    assert probe["learning_rate"] == pytest.approx(best, rel=0.01)
    named = Stage(base, groups, tmp_path / "named", learning_rate=probe["learning_rate"])
    assert same(named.run(), kept)


def test_the_probe_is_made_once(base: Path, groups: Groups, tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text(json.dumps({"learning_rate": 0.0042, "gains": {}}))
    assert Stage(base, groups, tmp_path).offline.rate() == 0.0042
    assert Stage(base, groups, tmp_path, learning_rate=0.1).offline.rate() == 0.1


def test_a_rate_that_is_far_too_high_is_survived(
    base: Path, groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights and gradient are not finite, which must not affect lower rates and the run itself."""
    monkeypatch.setattr("trainer.training.stages.offline.PROBED", (0.03, 0.1, 1e30))
    stage = Stage(base, groups, tmp_path / "run")
    kept = stage.run()
    assert all(bool(weight.isfinite().all()) for weight in kept.values())
    probe = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert len(probe["gains"]) == 3
    assert probe["learning_rate"] < 0.1


def test_no_rate_that_is_named_is_survived_when_it_is_far_too_high(base: Path, groups: Groups, tmp_path: Path) -> None:
    stage = Stage(base, groups, tmp_path / "run", learning_rate=1e30, warmup_fraction=0)
    with pytest.raises(BonbonError, match=r"is (nan|inf)( at a learning rate of \d|; lower train.learning_rate)"):
        stage.run()


@pytest.mark.parametrize(
    ("values", "tried", "best"),
    [
        ([0.0, 1.0, 2.0, 1.0, 5.0], {1, 2, 3}, 2),
        ([0.0, 1.0, 2.0, 3.0, 4.0], {2, 3, 4}, 4),
        ([4.0, 3.0, 2.0, 1.0, 0.0], {0, 1, 2, 3}, 0),
        ([0.0, 3.0, 2.0, -math.inf, 9.0], {0, 1, 2, 3}, 1),
        ([1.0, 1.0, 1.0, 1.0, 1.0], {1, 2, 3}, 2),
    ],
    ids=["middle", "up", "down", "not finite", "flat"],
)
def test_climbing(values: list[float], tried: set[int], best: int) -> None:
    """The search goes upwards from the middle, and downwards if that did not help, while the values rise."""
    calls: list[int] = []

    def value(place: int) -> float:
        calls.append(place)
        return values[place]

    found = climb(2, 5, value)
    assert set(found) == tried
    assert sorted(calls) == sorted(tried), "none is tried twice"
    assert max(found, key=lambda place: found[place]) == best


def _as_an_earlier_release(state: Path) -> None:
    """Turns the state of a checkpoint into that of a release with other fields."""
    values = json.loads(state.read_text())
    for name in ("best_value", "looks_since_best", "tokens"):
        del values[name]
    state.write_text(json.dumps(values | {"mark": values["best_gain"], "looks_since_mark": 0, "halvings": 1}))


def test_cut_off_after_any_step_it_goes_on_to_the_same_end(
    base: Path, groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run continues from its last checkpoint, including the random numbers of a step."""
    options: dict[str, Any] = {
        "learning_rate": 1e-3, "epochs": 2, "checkpoint_every": 4, "lora_dropout": 0.1, "weight_decay": 0.01, "seed": 3,
    }  # fmt: skip
    straight = Stage(base, groups, tmp_path / "straight", **options)
    expected = straight.run()
    assert max(straight.reported("loss")) == 12
    write = MetricsLog.write
    for last in (0, 4, 9):
        run_dir = tmp_path / f"cut-{last}"

        def write_and_end(self: MetricsLog, step: int, epoch: float, *, last: int = last, **values: float) -> None:
            write(self, step, epoch, **values)
            if step == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(MetricsLog, "write", write_and_end)
            with pytest.raises(KeyboardInterrupt):
                Stage(base, groups, run_dir, **options).run()
        if last == 9:
            _as_an_earlier_release(run_dir / "checkpoints" / "offline" / "step-00000008" / "state.json")
        again = Stage(base, groups, run_dir, **options)
        with MetricsLog(run_dir, resume=again.offline.checkpoints.latest() or 0) as log:
            assert same(again.offline.run(log), expected)
        for name in ("loss", "gradient_norm", "learning_rate", "validation_gain", "kept_step"):
            assert again.reported(name) == straight.reported(name), name


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
