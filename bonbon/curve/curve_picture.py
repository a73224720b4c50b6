"""Draws a best-of-k curve. This is the only module of `bonbon.curve` that needs matplotlib."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bonbon.chart_style import FAINT, STYLE
from bonbon.curve.best_of_k import Curve
from bonbon.errors import UserError
from bonbon.theory import Estimate, best_of_n_win_rate

REWARD, JUDGE, LIMIT = "#2563eb", "#db2777", "#d97706"


def save(curve: Curve, path: Path) -> None:
    """Draws expected reward, gains and win rate for every k, with their intervals.

    Raises UserError when the file cannot be written or its suffix is not an image format.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(15, 4.4), layout="constrained")
        figure.suptitle(
            f"Best-of-k of {curve.kind.version}, from {curve.groups:,} logged groups",
            x=0.012,
            ha="left",
            fontsize=13,
            fontweight="bold",
        )
        for axis, panel in zip(figure.subplots(1, 3), (_rewards, _gains, _win_rates), strict=True):
            panel(axis, curve)
            axis.set_xlabel("k, draws")
        try:
            figure.savefig(path, dpi=110)
        except (OSError, ValueError) as error:
            raise UserError(f"--png {path}: {error}; name a .png file in an existing directory", param="png") from error


def _rewards(axis: Axes, curve: Curve) -> None:
    axis.set_title("Expected reward")
    _line(axis, [(point.k, point.reward) for point in curve.points], REWARD, curve.kind.reward.name)
    if curve.stops_at is not None:
        axis.axvline(curve.stops_at, color=LIMIT, linestyle="--", label=f"more than {curve.stops_at} do not pay")
    if curve.judge is not None:
        judged = [(point.k, point.judge_reward) for point in curve.points]
        _line(axis, judged, JUDGE, f"of the same answers by the judge, {curve.judge}")
    axis.legend(loc="lower right")


def _gains(axis: Axes, curve: Curve) -> None:
    axis.set_title("What the k-th draw adds")
    _line(axis, [(point.k, point.gain) for point in curve.points], REWARD, curve.kind.reward.name)
    first = curve.points[0].reward.value
    limits = [(after.k, curve.share * (before.reward.value - first)) for before, after in pairwise(curve.points)]
    axis.plot(*zip(*limits, strict=True), color=LIMIT, linestyle="--", label=f"{curve.share:.0%} of the gain before it")
    axis.legend(loc="upper right")


def _win_rates(axis: Axes, curve: Curve) -> None:
    axis.set_title("Win rate against one draw")
    ks = [point.k for point in curve.points]
    axis.plot(ks, [best_of_n_win_rate(k) for k in ks], color=FAINT, linestyle="--", label="k / (k + 1), without ties")
    _line(
        axis, [(point.k, point.win_rate) for point in curve.points], REWARD, f"by {curve.kind.reward.name}, which chose"
    )
    if curve.judge is not None:
        _line(axis, [(point.k, point.judge_win_rate) for point in curve.points], JUDGE, f"by the judge, {curve.judge}")
    axis.legend(loc="lower right")


def _line(axis: Axes, found: Sequence[tuple[int, Estimate | None]], colour: str, label: str) -> None:
    shown = [(k, estimate) for k, estimate in found if estimate is not None]
    ks = [k for k, _ in shown]
    axis.plot(ks, [estimate.value for _, estimate in shown], "o-", color=colour, markersize=4, label=label)
    lows, highs = [estimate.low for _, estimate in shown], [estimate.high for _, estimate in shown]
    axis.fill_between(ks, lows, highs, color=colour, alpha=0.15, linewidth=0)
