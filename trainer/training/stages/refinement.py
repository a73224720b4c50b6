"""The on-policy stage: learning from the policy's own draws, which logged groups say too little about.

Every step draws for some training prompts from the policy as it is and learns from these groups, with the same loss as
before. Its gradient on fresh draws is that of the objective J itself; and because its minimum does not depend on who
drew the candidates, earlier draws are learnt from again (`train.refine_replay`). Fresh draws for validation prompts
decide which step is kept and when the stage ends. A policy that they show to diverge more from the base than it may is
brought back on the straight way to the base, and learns on from there.
"""

import math
from pathlib import Path

import numpy as np
import torch

from bonbon.errors import BonbonError
from bonbon.pairs.reading.snapshot import Split
from bonbon.settings import TrainSettings
from trainer.data.batches import epoch_steps
from trainer.data.groups import Groups, Rows
from trainer.progress_bars import Bars
from trainer.training.checkpoint import Checkpoint, Checkpoints
from trainer.training.learning.learner import Learner, Weights
from trainer.training.metrics import MetricsLog
from trainer.training.stages.schedule import step_seed
from trainer.training.stages.validation import Drawer

STAGE = 1
FIRST_ORDER = 100
"""Number of the stage's first draws: smaller numbers are for what comes before it."""
ORDERS_PER_STEP = 4
"""Orders of draws that a step may give: one to learn from, one to look at the policy, and two more to look at it after
it was brought back."""
LOOK_EVERY = 10
"""Steps between looks at draws for validation prompts."""
PLATEAU = 2
"""Looks in a row without a gain of `LEAST_GAIN` after which the learning rate is halved; again after as many more."""
PATIENCE = 6
"""Looks in a row without a gain of `LEAST_GAIN` after which the stage ends; each is known to a tenth of a nat only."""
LEAST_GAIN = 0.05
"""Nats."""
WARMUP = 5
TOLERANCE = 1.1
"""Times the limit of the KL that a policy may have by its draws, whose KL is known to a tenth of a nat."""


class Refinement:
    """Every process of a run makes one.

    Args:
        start: the weights that the stage starts from, and `gain` what they have gained on validation draws.
        groups: the snapshot's.
        validation: rows of the prompts that are drawn for at every look, `draws` times each.
        offset: optimiser steps of the stages before, and `epochs` their passes over the data, for the run's metrics.
        rate: the learning rate.
        tilt: c of the objective.
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
        rate: float,
        tilt: float,
        most_kl: float,
        offset: int,
        epochs: float,
        run_dir: Path,
        progress: Bars,
    ) -> None:
        self.learner, self.drawer, self.start, self.groups = learner, drawer, start, groups
        self.draws, self.config, self.rate, self.tilt, self.most_kl = draws, config, rate, tilt, most_kl
        self.validation, self.offset, self.epochs, self.progress = validation, offset, epochs, progress
        rows = groups.rows_of(Split.TRAIN)
        # One row a prompt: a prompt that was asked often is drawn for as often as any other.
        first = {groups.distributions[row]: row for row in rows[groups.comparable[rows]][::-1]}
        self.rows: Rows = np.sort(np.array(list(first.values()), dtype=np.int64))
        self.checkpoints = Checkpoints(
            run_dir / "checkpoints" / "refinement", config.keep_checkpoints, learner.accelerator
        )
        self.drawn: Groups
        self.reference = torch.zeros(0)  # log-probabilities of all that was drawn, under the base
        self.tokens = 0

    def run(self, log: MetricsLog) -> Weights:
        """The weights of the step that gained most on validation draws.

        Raises:
            BonbonError: drawing failed, or the loss is not finite; the last checkpoint and all draws are kept.
        """
        budget, state = self.config.refine_tokens, self.checkpoints.load(self.learner)
        if state is None:
            self.learner.restart(self.start)
            state = Checkpoint(best=self.start)
            self._look(state, log)
        else:
            self._take_again(state.step)
        with self.progress.task("learning from its own draws", budget, done=self.tokens) as bar:
            while self.tokens < budget and state.looks_since_mark < PATIENCE:
                metrics = self._step(state.step, self.rate / 2**state.halvings)
                state.step += 1
                self._write(log, state.step, **metrics)
                bar(min(self.tokens, budget), f"gain {metrics['drawn_gain']:.3f}  best {state.best_gain:.3f}")
                if state.step % LOOK_EVERY == 0:
                    self._look(state, log)
                    self.checkpoints.save(state, self.learner)
        if state.step % LOOK_EVERY:
            self._look(state, log)
        self._write(log, state.step, kept_step=self.offset + state.best_step, kept_gain=state.best_gain)
        return state.best

    def _step(self, step: int, rate: float) -> dict[str, float]:
        fresh, rows = self._draw(step)
        metrics: dict[str, float] = {}
        updates = 1 + self.config.refine_replay
        rng = np.random.default_rng([self.config.seed, STAGE, step])
        for update in range(updates):
            # What is fresh comes first, then some of all that was drawn so far.
            some = rows if update == 0 else rng.permutation(len(self.drawn))[: len(rows)]
            chosen = [self.drawn.candidates_of(int(row)) for row in some]
            seed = step_seed(self.config.seed, STAGE, step * updates + update)
            warm = min(1.0, (step + 1) / WARMUP)
            found = self.learner.update(self.drawn, chosen, self.reference, rate=rate * warm, seed=seed)
            metrics = metrics or found
        log_ratio = fresh.logprobs - self.reference[-len(fresh.logprobs) :].double().numpy()
        gain = self.tilt * (fresh.wins - 0.5) - log_ratio
        return metrics | {"drawn_gain": float(gain.mean()), "drawn_tokens": float(self.tokens)}

    def _draw(self, step: int) -> tuple[Groups, Rows]:
        """What a step draws, and its rows among all that was drawn, which have it at their end from now on."""
        size = self.learner.whole(min(self.config.batch_size, len(self.rows)))
        epoch, position = divmod(step, max(1, len(self.rows) // size))
        rows = epoch_steps(self.rows, size, seed=self.config.seed + STAGE, epoch=epoch)[position]
        fresh = self.drawer(
            FIRST_ORDER + ORDERS_PER_STEP * step, self.learner.weights(), rows, self.config.refine_draws
        )
        usable = self.learner.whole(len(fresh))
        if not usable:
            raise BonbonError("none of the prompts to draw for fits the engine's context: raise its length")
        self.tokens += int(fresh.tokens.sum())
        every = np.arange(len(fresh))
        reference = self.learner.of_base(fresh, every, "log-probabilities under the base", transient=True)
        self.drawn = self.drawn + fresh if len(self.reference) else fresh
        self.reference = torch.cat([self.reference, reference])
        return fresh, np.arange(len(self.drawn) - len(fresh), len(self.drawn))[:usable]

    def _take_again(self, steps: int) -> None:
        """What was drawn before the run was cut off."""
        for step in range(steps):
            self._draw(step)
        for step in range(0, steps + 1, LOOK_EVERY):
            for number in range(1, ORDERS_PER_STEP):
                self.tokens += self.drawer.kept_tokens(FIRST_ORDER + ORDERS_PER_STEP * step + number)

    def _look(self, state: Checkpoint, log: MetricsLog) -> None:
        """Draw for the validation prompts, and keep the policy if it gains more than the best one before it."""
        weights, first, share = self.learner.weights(), FIRST_ORDER + ORDERS_PER_STEP * state.step, 1.0
        for number in range(first + 1, first + ORDERS_PER_STEP):
            found = self.drawer.gain(number, weights, self.validation, self.draws, self.tilt)
            self.tokens += found.tokens
            allowed = found.kl <= self.most_kl * TOLERANCE
            if allowed or number == first + ORDERS_PER_STEP - 1:
                break
            back = math.sqrt(self.most_kl / found.kl)  # the KL grows with the square of the share of the way
            share, weights = share * back, self.learner.towards_base(weights, back)
        gain = found.gain if allowed else -math.inf
        state.see(gain, lambda: weights, least=LEAST_GAIN)
        if state.looks_since_mark and state.looks_since_mark % PLATEAU == 0:
            state.halvings += 1
        self._write(
            log,
            state.step,
            validation_drawn_gain=found.gain,
            validation_drawn_gain_error=found.standard_error,
            validation_win_rate=found.win_rate,
            validation_kl=found.kl,
            share_kept=share,
        )

    def _write(self, log: MetricsLog, step: int, **values: float) -> None:
        log.write(
            self.offset + step, self.epochs + step * self.config.batch_size / len(self.rows), stage=STAGE, **values
        )
