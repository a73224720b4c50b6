"""The offline stage: learns from logged groups, at a learning rate chosen by a short probe.

The stage draws nothing. Logged groups held out for validation choose the learning rate and the step that is kept,
because a policy memorises its training groups long before it stops improving on them.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import structlog
from torch import Tensor

from bonbon.errors import BonbonError
from bonbon.progress import Bars, Task
from bonbon.settings import TrainSettings
from trainer.data.batches import epoch_steps
from trainer.data.groups import Groups, Rows
from trainer.result_files import read_json, write_json
from trainer.training.checkpoint import Checkpoint, Checkpoints
from trainer.training.learning.candidate_selection import candidates
from trainer.training.learning.learner import Learner, Weights
from trainer.training.metrics import MetricsLog
from trainer.training.stages.schedule import count_steps, default_learning_rate, learning_rate_factor, step_seed
from trainer.training.stages.validation import LoggedGain, logged_gain

logger = structlog.get_logger(__name__)

STAGE = 0
PROBE = "probe.json"
PROBED = (0.01, 0.03, 0.1, 0.3, 1.0)
"""The learning rates to probe, as fractions of the highest one."""
PROBE_STEPS = 20
VALIDATIONS = 10
"""Number of validations during the stage."""
PATIENCE = 3
"""Consecutive validations without a higher gain after which the stage ends."""


class Offline:
    """Learns from logged groups. Every process of a run creates one.

    Args:
        start: The weights that learning starts from.
        rows: Groups to train on; at least `config.batch_size`.
        validation: Validation groups drawn from the base; may be empty.
        reference: Log-probabilities of all candidates of `groups` under the base.
        tilt: c of the objective.
    """

    def __init__(
        self,
        learner: Learner,
        start: Weights,
        groups: Groups,
        rows: Rows,
        validation: Rows,
        reference: Tensor,
        *,
        config: TrainSettings,
        tilt: float,
        run_dir: Path,
        progress: Bars,
    ) -> None:
        self.learner, self.start, self.groups, self.rows = learner, start, groups, rows
        self.validation, self.reference, self.config, self.tilt = validation, reference, config, tilt
        self.run_dir, self.progress = run_dir, progress
        self.steps_per_epoch = len(rows) // config.batch_size
        self.steps = count_steps(config, len(rows))
        self.checkpoints = Checkpoints(
            run_dir / "checkpoints" / "offline", config.keep_checkpoints, learner.accelerator
        )
        self._epoch: tuple[int, list[Rows]] = (-1, [])

    def run(self, log: MetricsLog) -> Weights:
        """Returns the weights of the step with the highest gain on validation groups, or of the last step without them.

        Raises:
            BonbonError: The loss, the gradient or a weight is not finite; the last checkpoint is kept.
        """
        rate = self.rate()
        every = max(1, self.steps // VALIDATIONS)
        state = self._resume(log)
        with self.progress.task("learning from logged groups", self.steps, done=state.step) as bar:
            while state.step < self.steps and state.looks_since_best < PATIENCE:
                metrics = self._step(state.step, rate, self.steps)
                state.step += 1
                note = f"loss {metrics['loss']:.3f}  margin {metrics['margin']:.2f} of {metrics['target']:.2f}"
                if len(self.validation) and (state.step % every == 0 or state.step == self.steps):
                    seen = self._validate()
                    state.see(seen.gain, self.learner.weights)
                    metrics |= _named(seen)
                    note += f"  validation gain {seen.gain:.3f}"
                self._write(log, state.step, **metrics)
                bar(state.step, note)
                if state.step % self.config.checkpoint_every == 0:
                    self.checkpoints.save(state, self.learner)
        if self.checkpoints.latest() != state.step:
            self.checkpoints.save(state, self.learner)
        if not len(self.validation):
            return self.learner.weights()
        self._write(log, state.step, kept_step=state.best_step, kept_gain=state.best_gain)
        return state.best

    def _resume(self, log: MetricsLog) -> Checkpoint:
        state = self.checkpoints.load(self.learner)
        if state is None:
            self.learner.restart(self.start)
            state = Checkpoint(best=self.start)
            if len(self.validation):
                seen = self._validate()
                state.see(seen.gain, lambda: self.start)
                self._write(log, 0, **_named(seen))
        return state

    @property
    def usual_rate(self) -> float:
        """The configured learning rate, or the middle one of those that are tried."""
        return self.config.learning_rate or self._highest_rate * PROBED[len(PROBED) // 2]

    @property
    def _highest_rate(self) -> float:
        width = self.learner.policy.config.get_text_config().hidden_size
        return 2 * default_learning_rate(self.config.method, width)

    def rate(self) -> float:
        """The peak learning rate: the configured one, or the one whose first steps gain most on validation groups.

        The latter is searched once and kept in the run directory.
        """
        if self.config.learning_rate or not len(self.validation):
            return self.usual_rate
        highest, middle = self._highest_rate, len(PROBED) // 2
        if known := read_json(self.run_dir / PROBE):
            return float(known["learning_rate"])
        steps = min(PROBE_STEPS, self.steps)
        with self.progress.task("trying learning rates", len(PROBED) * steps, transient=True) as bar:
            gains = climb(middle, len(PROBED), lambda place: self._probe(highest * PROBED[place], steps, bar))
        best = max(gains, key=lambda place: gains[place])
        found = {
            "learning_rate": highest * PROBED[best],
            # JSON cannot represent infinity.
            "gains": {
                f"{highest * PROBED[place]:.3g}": gain if math.isfinite(gain) else None
                for place, gain in sorted(gains.items())
            },
        }
        if self.learner.accelerator.is_main_process:
            write_json(self.run_dir / PROBE, found)
        logger.info("learning rate chosen", **found)
        return highest * PROBED[best]

    def _probe(self, rate: float, steps: int, bar: Task) -> float:
        """Returns the value of a validation after `steps` steps at this rate."""
        self.learner.restart(self.start)
        try:
            for step in range(steps):
                self._step(step, rate, steps)
                bar(step + 1, f"at {rate:.2g}")
            return self._validate().value
        except BonbonError:
            return -math.inf  # no longer finite, so the rate is too high

    def _step(self, step: int, rate: float, steps: int) -> dict[str, float]:
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            seed = self.config.seed
            self._epoch = epoch, epoch_steps(self.rows, self.config.batch_size, seed=seed, epoch=epoch)
        chosen = candidates(self.groups, self._epoch[1][position], self.config.loss, seed=self.config.seed, step=step)
        factor = learning_rate_factor(step, steps, self.config.warmup_fraction)
        seed = step_seed(self.config.seed, STAGE, step)
        return self.learner.update(self.groups, chosen, self.reference, rate=rate * factor, seed=seed)

    def _validate(self) -> LoggedGain:
        policy = self.learner.of_policy(self.groups, self.validation, "validation groups", transient=True)
        seen = logged_gain(self.groups, self.validation, policy, self.reference, self.tilt)
        if not math.isfinite(seen.gain):
            raise BonbonError(f"the gain on validation groups is {seen.gain}; lower train.learning_rate")
        return seen

    def _write(self, log: MetricsLog, step: int, **values: float) -> None:
        log.write(step, step / self.steps_per_epoch, stage=STAGE, **values)


def climb(start: int, count: int, value: Callable[[int], float]) -> dict[int, float]:
    """Returns the values at `start` and at its neighbours among `count`, upwards and then downwards, while they
    rise."""
    found = {start: value(start)}
    for way in (1, -1):
        here = start
        while 0 <= here + way < count:
            found[here + way] = value(here + way)
            if found[here + way] <= found[here]:
                break
            here += way
        if here != start:
            break
    return found


def _named(seen: LoggedGain) -> dict[str, float]:
    return {f"validation_{name}": value for name, value in asdict(seen).items()}
