"""Prints a best-of-k curve in the terminal, as a table and as sentences."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bonbon.curve.best_of_k import Curve, Point
from bonbon.theory import Estimate, best_of_n_win_rate


def print_curve(console: Console, curve: Curve) -> None:
    kind = curve.kind
    about = (
        f" groups of {kind.version} with {kind.n} candidates or more, scored by "
        f"{kind.reward.name} {kind.reward.version}"
        + (f", judged by {curve.judge}" if curve.judge else "")
        + (f"; {curve.smaller:,} smaller ones are left out" if curve.smaller else "")
        + f" ({curve.points[0].reward.clusters:,} clusters of prompts)"
    )
    console.print(Text.assemble((f"{curve.groups:,}", "bold"), about), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    titles = ["best of", "expected reward", "the last draw adds", "win rate"]
    titles += ["judge's mean", "judge's win rate"] if curve.judge else []
    for title in (*titles, "KL at most"):
        table.add_column(title, justify="right")
    for point in curve.points:
        table.add_row(*_cells(curve, point), style="bold" if point.k == curve.stops_at else None)
    console.print(table)
    for sentence in sentences(curve):
        console.print(sentence, soft_wrap=True)


def sentences(curve: Curve) -> list[str]:
    """Returns sentences that summarise the curve."""
    n = curve.kind.n
    lines = []
    if curve.stops_at is not None:
        lines.append(
            f"More than {curve.stops_at} draws do not pay: draw {curve.stops_at + 1} surely adds less than "
            f"{curve.share:.0%} of what the {curve.stops_at} before it gain over one."
        )
    elif n < 3:
        lines.append("Groups of two draws cannot show which n stops paying; send requests with a larger best_of.")
    else:
        lines.append(
            f"No draw up to {n} is known to add less than {curve.share:.0%} of what those before it gain over one: "
            f"{n} still pay, or there are too few groups to say."
        )
    if curve.tied == 0:
        lines.append(
            "The win rate is by the selecting reward, and no candidates are tied, so it is k / (k + 1) for any "
            "reward. The expected reward shows what a draw is worth."
        )
    else:
        lines.append(
            f"The win rate is by the selecting reward: k / (k + 1), lowered by ties ({curve.tied:.2%} of the pairs of "
            "candidates). The expected reward shows what a draw is worth."
        )
    lines.append("The number after ± is half the width of the 95 % interval.")
    if curve.judge is None:
        lines.append("No other judge was asked: name one with --judge or the setting held_out_reward.")
    elif curve.judged < curve.groups:
        unread = curve.groups - curve.judged
        lines.append(f"{unread:,} groups have prompts in token ids, which {curve.judge} cannot read.")
    return lines


def _cells(curve: Curve, point: Point) -> list[str]:
    by_judge = [_with_interval(point.judge_reward), _with_interval(point.judge_win_rate)] if curve.judge else []
    win_rate = _with_interval(point.win_rate) if point.win_rate else f"{best_of_n_win_rate(point.k):.3f} at most"
    return [
        str(point.k),
        _with_interval(point.reward),
        _with_interval(point.gain),
        win_rate,
        *by_judge,
        f"{point.kl:.3f}",
    ]


def _with_interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    half = (estimate.high - estimate.low) / 2
    return f"{estimate.value:.3f}" if half < 1e-9 else f"{estimate.value:.3f} ± {half:.3f}"
