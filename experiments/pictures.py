"""Draws the experiments' pictures. Each point is a policy, and no policy can lie above the frontier."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bonbon.chart_style import FAINT, INK, STYLE
from bonbon.registry.evaluation_figures import best_of
from bonbon.theory import best_gain, best_of_n_kl, best_of_n_win_rate, frontier_win_rate
from experiments import best_of_n, budgets, methods, real, rounds, text
from experiments.cells import Row
from experiments.training import METHODS

COLOURS = ("#64748b", "#d97706", "#dc2626", "#7c3aed", "#0891b2", "#16a34a", "#db2777", "#a16207", "#0f766e")
MARKERS = "osD^vP*XH"
Panel = Callable[[Axes, Sequence[Row]], None]


def save(rows: Mapping[str, Sequence[Row]], directory: Path) -> list[str]:
    """Draws every experiment that has figures to results-NAME.png in `directory` and returns the names."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = [name for name in PANELS if rows.get(name)]
    for name in drawn:
        with rc_context(STYLE):
            panels = PANELS[name]
            figure = Figure(figsize=(6.2 * len(panels), 4.4), layout="constrained")
            for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
                panel(axis, rows[name])
                axis.legend()
            # Without a date or a version in the file, the same figures give the same bytes.
            figure.savefig(directory / file_name(name), dpi=100, metadata={"Software": None})
    return drawn


def file_name(experiment: str) -> str:
    return f"results-{experiment}.png"


def _best_of_n(axis: Axes, rows: Sequence[Row]) -> None:
    for row, colour in zip(rows, COLOURS, strict=False):
        kls, wins = [one["kl"] for one in row["measured"]], [one["win_rate"] for one in row["measured"]]
        axis.plot(kls, wins, "o", color=colour, markersize=4, label=f"world {row['seed']}, exact")
    kls = [best_of_n_kl(n) for n in best_of_n.NS]
    axis.plot(kls, [best_of_n_win_rate(n) for n in best_of_n.NS], "+", color=INK, markersize=9, label="theory, no ties")
    for n, kl in zip(best_of_n.NS, kls, strict=True):
        axis.annotate(f"n = {n}", (kl, best_of_n_win_rate(n)), xytext=(5, -11), textcoords="offset points", fontsize=8)
    _frontier(axis, "Best-of-n against theory")


def _methods(axis: Axes, rows: Sequence[Row]) -> None:
    for method, colour, marker in zip(METHODS, COLOURS, MARKERS, strict=True):
        _points(axis, methods.of_method(rows, method), marker, colour, method)
    n = rows[0]["budget"]["n"]
    axis.plot(best_of_n_kl(n), best_of_n_win_rate(n), "+", color=INK, markersize=11, label=f"best-of-{n}, no ties")
    _frontier(axis, "The losses: a point a world")


def _budget_gap(axis: Axes, rows: Sequence[Row]) -> None:
    _over_groups(axis, rows, "gap", 100, "Points of win rate under the frontier")


def _budget_distance(axis: Axes, rows: Sequence[Row]) -> None:
    _over_groups(axis, rows, "from_best_of_n", 1, "KL(best-of-n, policy)")


def _over_groups(axis: Axes, rows: Sequence[Row], name: str, scale: float, title: str) -> None:
    for method, colour, marker in zip(budgets.COMPARED, COLOURS, MARKERS, strict=False):
        found = [row for row in budgets.of_method(rows, method) if row["budget"]["groups"] in budgets.GROUPS]
        if found:
            counts = [row["budget"]["groups"] for row in found]
            axis.plot(counts, [scale * row[name] for row in found], f"{marker}-", color=colour, label=method)
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets.GROUPS, [f"{groups:,}" for groups in budgets.GROUPS])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("groups")
    axis.set_title(title)


def _text(axis: Axes, rows: Sequence[Row]) -> None:
    shown = [row for row in rows if row["prompts"] == rows[0]["prompts"] and row["seed"] == rows[0]["seed"]]
    _evaluated(axis, shown, "Text world, 95 % intervals")


def _real(axis: Axes, rows: Sequence[Row]) -> None:
    _evaluated(axis, _of_first_model(rows), f"{rows[0]['model']}, 95 % intervals")


def _real_draws(axis: Axes, rows: Sequence[Row]) -> None:
    for row, colour, marker in zip(_of_first_model(rows), COLOURS, MARKERS, strict=False):
        ks = [one["k"] for one in row["evaluation"]["best_of_k"]]
        wins = [one["win_rate_served"] for one in row["evaluation"]["best_of_k"]]
        errors = [[one["value"] - one["low"] for one in wins], [one["high"] - one["value"] for one in wins]]
        axis.errorbar(
            ks, [one["value"] for one in wins], yerr=errors, fmt=f"{marker}-", color=colour, label=row["name"]
        )
    n = rows[0]["budget"]["n"]
    axis.axhline(0.5, color=FAINT, linestyle="--", label=f"best-of-{n} of the base")
    axis.set_xlabel("draws of the version")
    axis.set_ylabel(f"win rate against best-of-{n} of the base")
    axis.set_title("How many draws are as good")


def _gain_over_prompts(axis: Axes, rows: Sequence[Row]) -> None:
    for name, colour, marker in zip(text.GOALS, COLOURS, MARKERS, strict=False):
        found = [row for row in rows if row["name"] == name]
        if found:
            gains = [row["evaluation"]["gain"] for row in found]
            errors = [[one["value"] - one["low"] for one in gains], [one["high"] - one["value"] for one in gains]]
            beside = 1 + 0.05 * text.GOALS.index(name)  # so that intervals at the same number of prompts stay apart
            counts = [row["prompts"] * beside for row in found]
            values = [one["value"] for one in gains]
            axis.errorbar(counts, values, yerr=errors, fmt=marker, color=colour, capsize=3, label=name)
    _most_gain(axis, rows)
    ticks = sorted({row["prompts"] for row in rows})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("prompts, with a group each")
    axis.set_title("Gain in J on test prompts")


def _gain_over_tokens(axis: Axes, rows: Sequence[Row]) -> None:
    for row, colour, marker in zip([row for row in rows if row["own_draws"]], COLOURS, MARKERS, strict=False):
        name = f"{row['prompts']:,} prompts, seed {row['seed']}"
        tokens = [one["tokens"] / 1e6 for one in row["own_draws"]]
        gains = [one["gain"] for one in row["own_draws"]]
        axis.plot(tokens, gains, f"{marker}-", color=colour, markersize=4, label=name)
    _most_gain(axis, rows)
    axis.set_xlabel("tokens that the policy has drawn in training, millions")
    axis.set_title("Gain in J on validation prompts")


def _most_gain(axis: Axes, rows: Sequence[Row]) -> None:
    most = best_gain(rows[0]["evaluation"]["n"])
    axis.axhline(most, color=FAINT, linestyle="--", label="no policy gains more")
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))


def _of_first_model(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if (row["model"], row["form"]) == (rows[0]["model"], rows[0]["form"])]


def _evaluated(axis: Axes, rows: Sequence[Row], title: str) -> None:
    for row, colour, marker in zip(rows, COLOURS, MARKERS, strict=False):
        win, kl = row["evaluation"]["win_rate"], row["evaluation"]["kl"]
        errors = [[[one["value"] - one["low"]], [one["high"] - one["value"]]] for one in (kl, win)]
        axis.errorbar(
            kl["value"], win["value"], xerr=errors[0], yerr=errors[1], fmt=marker, color=colour, label=row["name"]
        )
    n = rows[0]["evaluation"]["n"]
    axis.plot(best_of_n_kl(n), best_of_n_win_rate(n), "+", color=INK, markersize=11, label=f"best-of-{n}, no ties")
    _frontier(axis, title)


def _round_quality(axis: Axes, rows: Sequence[Row]) -> None:
    (row,) = rows
    done = [one["after"] for one in row["rounds"] if "after" in one]
    names = [f"round {number},\n{best_of(round(one['k']))}" for number, one in enumerate(done, 1)]
    wins = [one["win_rate_best_of_n"] for one in done]
    errors = [[one["win_rate_best_of_n"] - one["win_rate_best_of_n_low"] for one in done]] * 2
    axis.errorbar(names, wins, yerr=errors, fmt="o", color=COLOURS[1], capsize=4, label="95 % interval")
    axis.axhline(0.5, color=FAINT, linestyle="--", label=f"best-of-{row['n']} of the base")
    axis.margins(x=0.4)
    axis.set_title(f"Win rate against best-of-{row['n']} of the base")


def _round_tokens(axis: Axes, rows: Sequence[Row]) -> None:
    (row,) = rows
    done = [row["before"], *(one["after"] for one in row["rounds"] if "after" in one)]
    names = [
        f"base,\n{best_of(row['n'])}",
        *(f"round {i},\n{best_of(round(one['k']))}" for i, one in enumerate(done[1:], 1)),
    ]
    axis.bar(names, [one["tokens_per_answer"] for one in done], color=COLOURS[0], width=0.5, label="without audits")
    axis.set_title("Tokens per answer")


def _points(axis: Axes, rows: Sequence[Row], style: str, colour: str, label: str) -> None:
    if rows:
        kls, wins = [row["kl"] for row in rows], [row["win_rate"] for row in rows]
        axis.plot(kls, wins, style, color=colour, markersize=5, linewidth=0.8, label=label)


def _frontier(axis: Axes, title: str) -> None:
    """Draws the frontier up to the highest KL in the picture."""
    kls = np.linspace(0.05, axis.get_xlim()[1], 200)
    axis.plot(kls, [frontier_win_rate(kl) for kl in kls], color=FAINT, linestyle="--", label="frontier")
    axis.set_xlabel("KL from the base, nats")
    axis.set_ylabel("win rate against the base")
    axis.set_title(title)


PANELS: dict[str, tuple[Panel, ...]] = {
    best_of_n.NAME: (_best_of_n,),
    methods.NAME: (_methods,),
    budgets.NAME: (_budget_gap, _budget_distance),
    text.NAME: (_text, _gain_over_prompts, _gain_over_tokens),
    rounds.NAME: (_round_quality, _round_tokens),
    real.NAME: (_real, _real_draws),
}
