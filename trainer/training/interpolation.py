"""Brings a policy that learnt from logged groups to where it is best on the way from the base.

Learning from what the base has drawn says little about what the trained policy draws, so that a policy may have gone
too far. On the straight way from the base's weights to its own, divergence grows steadily, and fresh draws say where
the objective is highest.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.bars import Bars
from trainer.data.groups import Rows
from trainer.files import read_json, write_json
from trainer.training.learner import Learner, Weights
from trainer.training.validation import Drawer, DrawnGain

FILE = "interpolation.json"
SHARES = (1.0, 0.75, 0.5, 0.35, 0.2)
ENOUGH = 2
"""Shares in a row that gain less than a larger one did, after which smaller ones are not tried."""
TOLERANCE = 1.05
"""Times the limit of the KL that a policy may have: its measurement has an error of its own."""


@dataclass(frozen=True, slots=True)
class Interpolated:
    """`share` of the way from the base, and the gain in J, the win rate and the KL from the base there.

    At share 0 the policy is the base.
    """

    share: float
    gain: float = 0.0
    standard_error: float = 0.0
    win_rate: float = 0.5
    kl: float = 0.0


def interpolate(
    learner: Learner,
    drawer: Drawer,
    weights: Weights,
    rows: Rows,
    *,
    draws: int,
    tilt: float,
    most_kl: float,
    run_dir: Path,
    progress: Bars,
) -> Interpolated:
    """The share with the highest gain in J among those whose KL from the base is at most `most_kl` nats.

    Measured on fresh draws, once: the run directory remembers it. Every process must call it.

    Args:
        weights: of the policy at share 1.
        rows: validation groups for whose prompts is drawn.
        draws: for each of them and each share.
    """
    if known := read_json(run_dir / FILE):
        return Interpolated(**known["chosen"])
    tried: list[Interpolated] = []
    best, worse = Interpolated(0.0), 0
    with progress.task("looking for the best policy on the way from the base", len(SHARES), transient=True) as bar:
        for number, share in enumerate(SHARES):
            found = _of(share, drawer.gain(number, learner.interpolated(weights, share), rows, draws, tilt))
            tried.append(found)
            allowed = found.kl <= most_kl * TOLERANCE
            better = allowed and found.gain > best.gain
            best, worse = (found, 0) if better else (best, worse + (best.share > 0))
            bar(number + 1, f"share {share:g}  gain {found.gain:.3f}  KL {found.kl:.3f}")
            if worse == ENOUGH:
                break
    if learner.accelerator.is_main_process:
        write_json(run_dir / FILE, {"chosen": asdict(best), "tried": [asdict(one) for one in tried]})
    learner.accelerator.wait_for_everyone()
    return best


def _of(share: float, drawn: DrawnGain) -> Interpolated:
    return Interpolated(share, drawn.gain, drawn.standard_error, drawn.win_rate, drawn.kl)
