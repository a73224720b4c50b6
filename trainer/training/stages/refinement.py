"""The on-policy stage: the policy learns from its own draws, which logged groups do not cover well.

Every step draws from the current policy for some training prompts and learns from these groups with the same loss as
before, except that `gvpo` has no supervised term. On fresh draws the gradient of `gvpo` is that of c W - KL, with the c
of the best policy at the highest KL that is tolerated. Because the minimum of the loss does not depend on the policy
that drew the candidates, earlier draws are replayed (`train.refine_replay`). The learning rate falls to 0 as the tokens
are used up, because noise in the gradient would otherwise raise the divergence without raising the win rate. Fresh
draws for validation prompts decide which step is kept. A policy whose divergence from the base exceeds the limit by
more than a tolerance is moved back along the straight line to the base and continues to learn from there.
"""

import math
from pathlib import Path

import numpy as np
import structlog
import torch

from bonbon.errors import BonbonError
from bonbon.pairs.reading.snapshot import Split
from bonbon.progress import Bars
from bonbon.settings import TrainSettings
from bonbon.theory import best_of_n_kl, tilt_for_kl
from trainer.data.batches import epoch_steps
from trainer.data.groups import Groups, Rows
from trainer.training.checkpoint import Checkpoint, Checkpoints
from trainer.training.learning.learner import Learner, Weights
from trainer.training.learning.loss import Loss
from trainer.training.metrics import MetricsLog
from trainer.training.stages.schedule import step_seed
from trainer.training.stages.validation import Drawer, DrawnGain, draws_per_prompt

logger = structlog.get_logger(__name__)

STAGE = 1
FIRST_ORDER = 100
"""Number of the stage's first order. Smaller numbers belong to the stages before it."""
ORDERS_PER_STEP = 9
"""Orders of draws that a step may give: one to learn from, and the others to validate the policy. Each validation may
take a second order that confirms it, and up to three more validations follow after the policy is moved back.
"""
VALIDATE_EVERY = 20
"""Steps between validations on fresh draws."""
CONFIRMING = 3
"""Multiple of the draws of a validation with which a policy is validated again before it counts as the best or is moved
back. The best of many single validations would owe its place to luck in part, and a better policy might never exceed
it. In the same way, many of the policies that seem to be beyond the tolerance are not, and each move costs win rate.
"""
WARMUP = 5
TOLERANCE = 1.1
"""Factor by which a measured KL may exceed the limit, because its error is about a tenth of a nat. Policies learn
towards the best one at this multiple of the limit or of best-of-n's KL, whichever is lower; most stay below it.
"""
MOVED_BACK = 1.05
"""Multiple of the limit to which a policy beyond the tolerance is first moved back. It is then moved to the limit
itself only if it is still beyond the tolerance, because moving back costs win rate.
"""
POWER = 3
"""The KL is taken to grow with this power of the distance from the base. Language models have shown 2.5 to 3.7."""


def tilt_at_limit(max_kl: float, n: int) -> float:
    """Returns the c of the best policy at the highest KL that is tolerated, but not beyond that of best-of-n."""
    return tilt_for_kl(TOLERANCE * min(max_kl, best_of_n_kl(n)))


def row_per_prompt(groups: Groups) -> Rows:
    """Returns the first row of each training prompt, so that a frequently requested one is drawn for no more often."""
    rows = groups.rows_of(Split.TRAIN)
    first = {groups.distributions[row]: row for row in rows[groups.comparable[rows]][::-1]}
    return np.sort(np.array(list(first.values()), dtype=np.int64))


def too_few_tokens(config: TrainSettings, groups: Groups, validation: Rows) -> str | None:
    """Returns how `train.refine_tokens` fall short of the first validation and one step, or None if they suffice.

    The policy's answers are taken to be as long as the logged ones.
    """
    prompts = min(config.batch_size, len(row_per_prompt(groups)))
    validated = (1 + CONFIRMING) * draws_per_prompt(config, validation) * len(validation)
    needed = math.ceil((validated + prompts * config.refine_draws) * float(groups.tokens.mean()))
    if needed <= config.refine_tokens:
        return None
    return (
        f"train.refine_tokens = {config.refine_tokens} is less than {needed}, which the first validation and one step "
        "take with answers as long as the logged ones: raise it, or lower train.validation_draws"
    )


class Refinement:
    """Learns from draws of the policy. Every process of a run creates one.

    Args:
        start: The weights that the stage starts from.
        groups: The snapshot's groups.
        validation: Rows of the prompts that every validation draws for, `draws` times each.
        offset: Optimiser steps of the earlier stages; `epochs` are their passes over the data. Both are for the run's
            metrics.
        loss: The loss on the policy's own draws.
        rate: The learning rate at the beginning.
        tilt: c of the objective.
        limit_tilt: The c with which policies are compared: that of the best policy at the highest KL that is tolerated.
    """

    def __init__(
        self,
        learner: Learner,
        drawer: Drawer,
        start: Weights,
        groups: Groups,
        validation: Rows,
        *,
        draws: int,
        config: TrainSettings,
        loss: Loss,
        rate: float,
        tilt: float,
        limit_tilt: float,
        max_kl: float,
        offset: int,
        epochs: float,
        run_dir: Path,
        progress: Bars,
    ) -> None:
        self.learner, self.drawer, self.start, self.groups = learner, drawer, start, groups
        self.draws, self.config, self.loss, self.rate = draws, config, loss, rate
        self.tilt, self.limit_tilt, self.max_kl = tilt, limit_tilt, max_kl
        self.validation, self.offset, self.epochs, self.progress = validation, offset, epochs, progress
        self.rows = row_per_prompt(groups)
        self.checkpoints = Checkpoints(
            run_dir / "checkpoints" / "refinement", config.keep_checkpoints, learner.accelerator
        )
        self.drawn: Groups
        self.reference = torch.zeros(0)  # log-probabilities of all draws under the base
        self.tokens = 0

    def run(self, log: MetricsLog) -> Weights:
        """Returns the weights that were best on validation draws.

        Raises:
            BonbonError: Drawing failed, or the loss is not finite; the last checkpoint and all draws are kept.
        """
        self.learner.loss = self.loss
        budget, state = self.config.refine_tokens, self.checkpoints.load(self.learner)
        if state is None:
            self.learner.restart(self.start)
            state = Checkpoint(best=self.start)
            self._validate(state, log)
        else:
            self._take_again(state)
        with self.progress.task("learning from its own draws", budget, done=self.tokens) as bar:
            while self.tokens < budget:
                metrics = self._step(state.step, self.rate * (1 - self.tokens / budget))
                state.step += 1
                self._write(log, state.step, **metrics)
                bar(
                    min(self.tokens, budget),
                    f"gain {metrics['drawn_gain']:.3f}  win rate {metrics['drawn_win_rate']:.3f}  "
                    f"KL {metrics['drawn_kl']:.3f}  best gain {state.best_gain:.3f}",
                )
                if state.step % VALIDATE_EVERY == 0:
                    self._validate(state, log)
                    state.tokens = self.tokens
                    self.checkpoints.save(state, self.learner)
        if state.step % VALIDATE_EVERY:
            self._validate(state, log)
        if not state.step:
            logger.warning(
                "the policy did not learn from its own draws, because the first validation took all tokens",
                tokens=self.tokens,
                remedy="raise train.refine_tokens or lower train.validation_draws",
            )
        self._write(log, state.step, kept_step=self.offset + state.best_step, kept_gain=state.best_gain)
        return state.best

    def _step(self, step: int, rate: float) -> dict[str, float]:
        fresh, rows = self._draw(step)
        metrics: dict[str, float] = {}
        updates = 1 + self.config.refine_replay
        rng = np.random.default_rng([self.config.seed, STAGE, step])
        for update in range(updates):
            # The fresh draws come first, then a sample of all earlier draws.
            some = rows if update == 0 else rng.permutation(len(self.drawn))[: len(rows)]
            chosen = [self.drawn.candidates_of(int(row)) for row in some]
            seed = step_seed(self.config.seed, STAGE, step * updates + update)
            warm = min(1.0, (step + 1) / WARMUP)
            found = self.learner.update(self.drawn, chosen, self.reference, rate=rate * warm, seed=seed)
            metrics = metrics or found
        log_ratio = fresh.logprobs - self.reference[-len(fresh.logprobs) :].double().numpy()
        win_rate, kl = float(fresh.wins.mean()), float(log_ratio.mean())
        return metrics | {
            "drawn_gain": self.tilt * (win_rate - 0.5) - kl,
            "drawn_win_rate": win_rate,
            "drawn_kl": kl,
            "drawn_tokens": float(self.tokens),
        }

    def _draw(self, step: int) -> tuple[Groups, Rows]:
        """Returns the draws of a step, and their rows among all draws, to which they are appended."""
        size = self.learner.whole(min(self.config.batch_size, len(self.rows)))
        epoch, position = divmod(step, max(1, len(self.rows) // size))
        rows = epoch_steps(self.rows, size, seed=self.config.seed + STAGE, epoch=epoch)[position]
        fresh = self.drawer(
            FIRST_ORDER + ORDERS_PER_STEP * step, self.learner.weights(), rows, self.config.refine_draws
        )
        usable = self.learner.whole(len(fresh))
        if not usable:
            raise BonbonError("none of the training's prompts fits the engine's context: raise the context length")
        self.tokens += int(fresh.tokens.sum())
        every = np.arange(len(fresh))
        reference = self.learner.of_base(fresh, every, "log-probabilities under the base", transient=True)
        self.drawn = self.drawn + fresh if len(self.reference) else fresh
        self.reference = torch.cat([self.reference, reference])
        return fresh, np.arange(len(self.drawn) - len(fresh), len(self.drawn))[:usable]

    def _take_again(self, state: Checkpoint) -> None:
        """Loads the draws from before the interruption."""
        for step in range(state.step):
            self._draw(step)
        self.tokens = state.tokens  # those of validations included

    def _validate(self, state: Checkpoint, log: MetricsLog) -> None:
        """Draws for the validation prompts, and keeps the policy if it is better than the best one so far."""
        weights, share = self.learner.weights(), 1.0
        found: DrawnGain | None = None
        first = FIRST_ORDER + ORDERS_PER_STEP * state.step + 1
        last = first + ORDERS_PER_STEP - 2
        for number in range(first, last + 1):
            draws = self.draws if found is None else CONFIRMING * self.draws
            fresh = self.drawer.gain(number, weights, self.validation, draws, self.tilt)
            self.tokens += fresh.tokens
            measured = fresh if found is None else found.pooled(fresh)
            too_far = measured.kl > self.max_kl * TOLERANCE
            if found is None and (too_far or measured.value(self.limit_tilt) > state.best_value):
                found = measured
            elif too_far and number < last:
                # One move may be too little, because the assumed power is only typical.
                back = (self.max_kl * (MOVED_BACK if share == 1 else 1) / measured.kl) ** (1 / POWER)
                share, weights, found = share * back, self.learner.towards_base(weights, back), None
            else:
                break
        # A policy that is still beyond the tolerance does not count.
        state.see(measured.gain, lambda: weights, value=-math.inf if too_far else measured.value(self.limit_tilt))
        self._write(
            log,
            state.step,
            validation_drawn_gain=measured.gain,
            validation_drawn_gain_error=measured.standard_error,
            validation_win_rate=measured.win_rate,
            validation_kl=measured.kl,
            validation_draws=measured.draws,
            share_kept=share,
        )

    def _write(self, log: MetricsLog, step: int, **values: float) -> None:
        log.write(
            self.offset + step, self.epochs + step * self.config.batch_size / len(self.rows), stage=STAGE, **values
        )
