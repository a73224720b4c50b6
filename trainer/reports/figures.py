"""Draws the charts of a run: its training (upper row) and its results on held-out prompts (lower row)."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bonbon.chart_style import FAINT, STYLE
from bonbon.settings import GateSettings
from bonbon.theory import Estimate, best_of_n_kl, best_of_n_win_rate, frontier_win_rate
from trainer.evaluation.evaluation import Evaluation

Metrics = Sequence[dict[str, Any]]

POLICY, HELD_OUT, BASE, BEST_OF_N, LIMIT = "#2563eb", "#db2777", "#94a3b8", "#d97706", "#dc2626"


def save(
    metrics: Metrics, evaluation: Evaluation | None, gate: GateSettings, *, title: str, svg: IO[bytes], png: Path
) -> None:
    """Draws charts of the training metrics, of the evaluation, or of both.

    Raises:
        ValueError: Both are missing.
    """
    rows = bool(metrics) + (evaluation is not None)
    if not rows:
        raise ValueError("a report needs training metrics or an evaluation")
    # Some style settings are read only when the figure is drawn.
    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.05)
        figure = Figure(figsize=(17, 0.5 + 4.1 * rows), layout=layout)
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
        axes = np.atleast_2d(figure.subplots(rows, 4))
        if metrics:
            for axis, panel in zip(axes[0], PANELS_OF_TRAINING, strict=True):
                panel(axis, metrics)
        if evaluation is not None:
            for axis, chart in zip(axes[-1], PANELS_OF_EVALUATION, strict=True):
                chart(axis, evaluation, gate)
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # one layout serves for both files
        figure.savefig(png, dpi=110)


def _loss(axis: Axes, metrics: Metrics) -> None:
    axis.set_title("Loss")
    _curves(axis, metrics, "loss")


def _margin(axis: Axes, metrics: Metrics) -> None:
    axis.set_title("Best against worst, log π/π₀")
    _curves(axis, metrics, "margin")
    steps, targets = _series(metrics, "target")
    axis.plot(steps, targets, color=BEST_OF_N, linestyle="--", linewidth=1.6, label="what the loss asks for")
    axis.set_ylabel("nats")
    axis.legend(loc="best")


def _gain(axis: Axes, metrics: Metrics) -> None:
    """Draws the objective on validation prompts during training, and marks the step that was kept."""
    axis.set_title("Gain in the objective, validation prompts")
    for name, colour, label in (
        ("validation_gain", HELD_OUT, "logged groups, to second order"),
        ("validation_drawn_gain", POLICY, "fresh draws of the policy"),
        ("interpolation_gain", BEST_OF_N, "the same, where refinement starts"),
    ):
        steps, gains = _series(metrics, name)
        if len(gains):
            axis.plot(steps, gains, "o-", color=colour, markersize=4, linewidth=1.4, label=label)
    kept, _ = _series(metrics, "kept_step")
    if kept:
        axis.axvline(kept[-1], color=FAINT, linestyle=":", linewidth=1.5, label="the step that was kept")
    axis.axhline(0, color=FAINT, linewidth=1)
    axis.set_xlabel("step")
    axis.set_ylabel("nats")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best")


def _drawn(axis: Axes, metrics: Metrics) -> None:
    axis.set_title("Win rate and KL of fresh draws")
    steps, rates = _series(metrics, "validation_win_rate")
    _, kls = _series(metrics, "validation_kl")
    if not steps:
        axis.text(0.5, 0.5, "training used no draws of the policy", ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    axis.plot(steps, rates, "o-", color=POLICY, markersize=4, linewidth=1.4, label="win rate")
    axis.plot(steps, kls, "s-", color=LIMIT, markersize=4, linewidth=1.4, label="KL, nats")
    axis.set_xlabel("step")
    axis.legend(loc="best")


def _curves(axis: Axes, metrics: Metrics, name: str) -> None:
    """Draws a metric on the training groups, raw and smoothed, and on validation groups."""
    steps, values = _series(metrics, name)
    window = max(1, len(values) // 25)
    axis.plot(steps, values, color=POLICY, alpha=0.22, linewidth=0.8)
    if len(values) >= window:
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axis.plot(steps[window - 1 :], smooth, color=POLICY, linewidth=1.8, label="training groups")
    seen, validation = _series(metrics, f"validation_{name}")
    if len(validation):
        axis.plot(seen, validation, "o-", color=HELD_OUT, markersize=4, linewidth=1.4, label="validation groups")
    axis.set_xlabel("step")
    axis.margins(x=0.02)
    axis.legend(loc="best")


def _win_rates(axis: Axes, evaluation: Evaluation, gate: GateSettings) -> None:
    e, ideal = evaluation, best_of_n_win_rate(evaluation.n)
    axis.set_title("Win rate, ties as half")
    rows: list[tuple[str, Estimate | None, str]] = [
        ("against the base", e.win_rate, POLICY),
        (f"best-of-{e.n}\nagainst the base", e.best_of_n_win_rate, BEST_OF_N),
        (f"against\nbest-of-{e.n}", e.best_of_k[0].win_rate_best_of_n, POLICY),
        ("against the base,\nheld-out reward", e.held_out_win_rate, HELD_OUT),
    ]
    shown = [(label, estimate, colour) for label, estimate, colour in rows if estimate is not None]
    for y, (_, estimate, colour) in enumerate(shown):
        _interval(axis, estimate, y, colour, horizontal=True)
        axis.annotate(f"{estimate.value:.3f}", (estimate.value, y), (0, 9), textcoords="offset points", ha="center")
    axis.axvline(0.5, color=FAINT, linewidth=1)
    axis.axvline(ideal, color=BEST_OF_N, linestyle="--", linewidth=1.3, label=f"n/(n+1) = {ideal:.3f}")
    axis.axvline(gate.min_win_rate, color=LIMIT, linestyle=":", linewidth=1.5, label=f"gate, {gate.min_win_rate:.2f}")
    axis.set_yticks(range(len(shown)), [label for label, _, _ in shown])
    axis.set_ylim(len(shown) - 0.4, -0.7)
    axis.set_xlim(0, 1)
    axis.legend(loc="lower left")


def _kl_plane(axis: Axes, evaluation: Evaluation, gate: GateSettings) -> None:
    e, bound = evaluation, best_of_n_kl(evaluation.n)
    axis.set_title("Win rate for the KL spent")
    kls = np.linspace(0, max(best_of_n_kl(4 * e.n), e.kl.value), 200)
    axis.plot(kls, [frontier_win_rate(kl) for kl in kls], color=BASE, label="the highest that any policy can have")
    label = f"best-of-{e.n}: log n - (n-1)/n = {bound:.2f}"
    axis.plot(bound, best_of_n_win_rate(e.n), "D", color=BEST_OF_N, markersize=7, label=label)
    axis.errorbar(
        e.kl.value,
        e.win_rate.value,
        xerr=_arms(e.kl),
        yerr=_arms(e.win_rate),
        fmt="o",
        color=POLICY,
        capsize=3,
        markersize=7,
        label=f"{e.version}: {e.kl.value:.2f}",
    )
    limit = gate.max_kl_factor * bound
    axis.axvline(limit, color=LIMIT, linestyle=":", linewidth=1.5, label=f"gate, {limit:.2f}")
    axis.set_xlabel(f"KL from the base, nats\n({e.kl_estimator})")
    axis.set_ylabel("win rate against the base")
    axis.set_xlim(left=0)
    axis.legend(loc="lower right")


def _best_of_k(axis: Axes, evaluation: Evaluation, gate: GateSettings) -> None:
    e = evaluation
    opponent = "what is served" if gate.opponent == "served" else f"best-of-{e.n} of the base"
    axis.set_title(f"Best of k draws against {opponent}")
    for one in e.best_of_k:
        _interval(axis, getattr(one, f"win_rate_{gate.opponent}"), one.k, POLICY, horizontal=False)
    minimum = 0.5 - gate.margin
    axis.axhline(minimum, color=LIMIT, linestyle=":", linewidth=1.5, label=f"gate, lower bound {minimum:.2f}")
    axis.axhline(0.5, color=FAINT, linewidth=1)
    axis.set_xlabel("k, draws an answer")
    axis.set_ylabel("win rate")
    axis.legend(loc="best")


def _rewards(axis: Axes, evaluation: Evaluation, gate: GateSettings) -> None:
    e = evaluation
    axis.set_title(f"Mean reward ({_share(e.recovered)} of the gain)")
    _columns(
        axis,
        (
            (e.base_reward_mean, "base", BASE),
            (e.reward_mean, "version", POLICY),
            (e.best_of_n_reward_mean, f"best-of-{e.n}", BEST_OF_N),
        ),
    )


def _columns(axis: Axes, columns: Iterable[tuple[Estimate, str, str]]) -> None:
    labels = []
    for x, (estimate, label, colour) in enumerate(columns):
        _interval(axis, estimate, x, colour, horizontal=False)
        axis.annotate(f"{estimate.value:.2f}", (x, estimate.value), (10, -3), textcoords="offset points")
        labels.append(label)
    axis.set_xticks(range(len(labels)), labels)
    axis.set_xlim(-0.6, len(labels) - 0.3)


def _interval(axis: Axes, estimate: Estimate, at: float, colour: str, *, horizontal: bool) -> None:
    x, y = (estimate.value, at) if horizontal else (at, estimate.value)
    arms = _arms(estimate)
    xerr, yerr = (arms, None) if horizontal else (None, arms)
    axis.errorbar(x, y, xerr=xerr, yerr=yerr, fmt="o", color=colour, capsize=4, markersize=7, linewidth=2)


def _arms(estimate: Estimate) -> list[list[float]]:
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.0%}" if np.isfinite(estimate.value) else "no share"


def _series(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    found = [(entry["step"], entry[name]) for entry in metrics if name in entry]
    return [step for step, _ in found], [value for _, value in found]


PANELS_OF_TRAINING: tuple[Callable[[Axes, Metrics], None], ...] = (_loss, _margin, _gain, _drawn)
PANELS_OF_EVALUATION: tuple[Callable[[Axes, Evaluation, GateSettings], None], ...] = (
    _win_rates,
    _kl_plane,
    _best_of_k,
    _rewards,
)
