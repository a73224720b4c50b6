"""Prints the demo's results: figures before and after, and answers side by side."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from bonbon.demo.demo_figures import Figures
from bonbon.demo.traffic import Reply


def figures_table(columns: dict[str, Figures], n: int) -> Table:
    """Returns a table with one column per policy. Names, which are too long for its columns, are below it."""
    rows = list(columns.values())
    versions = ", ".join(dict.fromkeys(f.version for f in rows))
    estimators = "; ".join(f"{title}: {f.kl_estimator}" for title, f in columns.items() if f.kl_estimator)
    table = Table(
        title=f"Best-of-{n}, and what was distilled from it",
        title_justify="left",
        caption=f"Versions: {versions}.\nEstimators of the KL: {estimators}.",
        caption_justify="left",
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for title in columns:
        table.add_column(title, justify="right", min_width=max(map(len, title.split())))

    def row(title: str, cells: Sequence[str]) -> None:
        table.add_row(title, *cells)

    row("draws per answer (k)", [f"[bold]{f.k:g}[/]" for f in rows])
    row("win rate against base", [f"{f.win_rate:.3f}" for f in rows])
    row("  95 % interval", [f"{f.win_rate_low:.3f} to {f.win_rate_high:.3f}" for f in rows])
    row("  comparisons", [f"{f.comparisons:,}" for f in rows])
    row(f"win rate against best-of-{n}", [_number(f.win_rate_best_of_n, 3) for f in rows])
    row("  95 % interval", [_interval(f.win_rate_best_of_n_low, f.win_rate_best_of_n_high) for f in rows])
    row("KL from base (nats)", [_number(f.kl, 2) for f in rows])
    row("mean reward", [f"{f.reward_mean:.2f}" for f in rows])
    row("mean length, tokens", [f"{f.length_mean:.1f}" for f in rows])
    row("tokens per answer", [f"[bold]{f.tokens_per_answer:.1f}[/]" for f in rows])
    row("  share saved", [_percent(f.saved_share) for f in rows])
    row("p50 latency (ms)", [f"{1e3 * f.latency_p50_s:.0f}" for f in rows])
    row("p50 first token (ms)", [f"[bold]{1e3 * f.ttft_p50_s:.0f}[/]" for f in rows])
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def sample_panels(samples: dict[str, list[Reply]], count: int = 3) -> RenderableType:
    """Returns the same requests answered by each policy."""
    panels = []
    titles = list(samples)
    for i in range(count):
        table = Table(show_header=False, box=None, padding=(0, 1))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for title in titles:
            table.add_row(title, samples[title][i].texts[0])
        panels.append(Panel(table, title=samples[titles[0]][i].request, title_align="left"))
    return Group(*panels)


def print_gate(console: Console, gate: dict[str, Any], n: int) -> None:
    """Prints the verdict, every reason for it, and its effect on answers."""
    passed = gate["passed"]
    console.print(f"[bold {'green' if passed else 'red'}]gate {'passed' if passed else 'refused it'}[/]")
    for reason in gate["reasons"]:
        console.print(f"  {reason}", highlight=False)
    if passed:
        k, saved = gate["k"], gate["saved"]
        what = "one draw answers" if k == 1 else f"the best of {k} draws answers"
        console.print(f"k = {k}: {what} as well as best-of-{n}, for {saved:.0%} fewer tokens", highlight=False)
