"""Writes the table of figures in the README from the figures of the experiment `rounds`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bonbon.registry.evaluation_figures import best_of
from experiments.cells import Row
from experiments.rounds import estimated
from experiments.tables import table

BEGIN, END = "<!-- rounds: begin -->", "<!-- rounds: end -->"


def readme_table(row: Row) -> str:
    """Returns the table in Markdown: the base, best-of-n of it, and every version that the gate approved as it answers.

    Args:
        row: the arguments and figures of the experiment `rounds`, with at least one version that was promoted.
    """
    n, swap = row["n"], row["swap"]
    columns = {"base, one draw": row["base"], f"base, {best_of(n)}": row["before"]}
    for number, done in enumerate(row["rounds"], 1):
        if "after" in done:
            columns[f"round {number}, {best_of(round(done['after']['k']))}"] = done["after"]
    failed = f"{swap['failed']} of {swap['requests']}"

    def line(title: str, cell: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
        return (title, *map(cell, columns.values()))

    return table(
        ("", *columns),
        [
            line("win rate against one draw of the base", lambda figures: estimated(figures, "win_rate")),
            line(f"win rate against {best_of(n)}", lambda figures: estimated(figures, "win_rate_best_of_n")),
            line("KL from the base, nats", _divergence),
            line("mean reward", lambda figures: f"{figures['reward_mean']:.2f}"),
            line("tokens generated for an answer", lambda figures: f"{figures['tokens_per_answer']:.0f}"),
            ("requests that failed, all swaps together", *[""] * (len(columns) - 1), failed),
        ],
    )


def write_readme_table(rows: Sequence[Row], readme: Path) -> None:
    """Replaces the table between the two marks; without figures of a promoted version, the README stays as it is."""
    if any("after" in done for row in rows for done in row["rounds"]):
        before, _, rest = readme.read_text().partition(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n\n{readme_table(rows[0])}\n\n{END}{rest.partition(END)[2]}")


def _divergence(figures: dict[str, Any]) -> str:
    if figures["kl"] is None:
        return ""
    bound = "at most " if figures["kl_estimator"].startswith("log n") else ""
    return f"{bound}{figures['kl']:.2f}"
