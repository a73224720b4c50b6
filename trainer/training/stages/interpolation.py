"""Moves a policy trained on logged groups to the best point on the straight line from the base to it.

Logged draws of the base reveal little about what the trained policy generates, so training may have moved it too far.
On the straight line between the base's weights and the policy's, the divergence grows steadily, and fresh draws show
where the objective is highest.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bonbon.progress import Bars
from trainer.data.groups import Rows, Values
from trainer.result_files import read_json, write_json
from trainer.training.learning.learner import Learner, Weights
from trainer.training.stages.validation import Drawer

FILE = "interpolation.json"
SHARES = (1.0, 0.7, 0.4)
"""The shares of the line at which the policy is sampled."""
GRID = 101
"""Number of shares among which the best one is searched, including 0 and 1."""


@dataclass(frozen=True, slots=True)
class Tried:
    """The gain in J and the KL from the base at one share of the line, measured on the policy's own draws."""

    share: float
    gain: float
    standard_error: float
    win_rate: float
    kl: float


@dataclass(frozen=True, slots=True)
class Interpolated:
    """The chosen share of the line from the base, with the gain and the KL that are expected there."""

    share: float
    gain: float
    kl: float


def interpolate(
    learner: Learner,
    drawer: Drawer,
    weights: Weights,
    rows: Rows,
    *,
    draws: int,
    tilt: float,
    max_kl: float,
    run_dir: Path,
    progress: Bars,
) -> Interpolated:
    """Returns the share with the highest gain in J among those whose KL from the base is at most `max_kl` nats.

    The shares are measured on fresh draws once, and the result is kept in the run directory. Every process must call
    it.

    Args:
        weights: The weights of the policy at share 1.
        rows: Validation groups whose prompts are drawn for.
        draws: Draws per prompt and share.
    """
    if known := read_json(run_dir / FILE):
        return Interpolated(**known["chosen"])
    tried: list[Tried] = []
    with progress.task("drawing on the way from the base", len(SHARES), transient=True) as bar:
        for number, share in enumerate(SHARES):
            found = drawer.gain(number, learner.interpolated(weights, share), rows, draws, tilt)
            tried.append(Tried(share, found.gain, found.standard_error, found.win_rate, found.kl))
            bar(number + 1, f"share {share:g}  gain {found.gain:.3f}  KL {found.kl:.3f}")
    chosen = best_share(tried, max_kl)
    if learner.accelerator.is_main_process:
        write_json(run_dir / FILE, {"chosen": asdict(chosen), "tried": [asdict(one) for one in tried]})
    learner.accelerator.wait_for_everyone()
    return chosen


def best_share(tried: Sequence[Tried], max_kl: float) -> Interpolated:
    """Returns the best share according to curves fitted through the measured shares.

    At share 0 the policy is the base, with no gain and no divergence. Near it the gain is a s - b s^2 and the KL grows
    with s^2. One curve through all measurements is more precise than any single one, because a gain estimated from a
    few hundred draws has an error of about a tenth of a nat.
    """
    shares = np.array([one.share for one in tried])
    weights = 1 / np.maximum([one.standard_error for one in tried], 1e-3)
    gain = _fit([shares, shares**2], [one.gain for one in tried], weights)
    kl = _fit([shares**2, shares**3], [one.kl for one in tried], np.ones(len(tried)))
    grid = np.linspace(0, 1, GRID)
    gains, kls = gain[0] * grid + gain[1] * grid**2, kl[0] * grid**2 + kl[1] * grid**3
    best = int(np.where(kls <= max_kl, gains, -np.inf).argmax())
    return Interpolated(float(grid[best]), float(gains[best]), float(kls[best]))


def _fit(terms: Sequence[Values], values: Sequence[float], weights: Values) -> Values:
    """Returns the coefficients of the terms, by weighted least squares."""
    found, *_ = np.linalg.lstsq(np.stack(terms, axis=1) * weights[:, None], np.array(values) * weights, rcond=None)
    return np.asarray(found)
