"""Compares best-of-n itself, computed exactly, with theory."""

from collections.abc import Sequence
from typing import Any

from bonbon.theory import best_of_n_kl, best_of_n_win_rate
from experiments.cells import Cell, Row
from experiments.tables import points, table
from experiments.training import figures, world

NAME = "best-of-n"
NS = (2, 3, 4, 6, 8, 12, 16)


def cells(quick: bool) -> list[Cell]:
    return [Cell(f"{NAME}/seed-{seed}", run, {"seed": seed, "ns": NS}) for seed in range(1 if quick else 3)]


def run(seed: int, ns: Sequence[int]) -> dict[str, Any]:
    here = world(seed)
    return {"measured": [{"n": n} | figures(here, here.best_of_n(n).log(), n) for n in ns]}


def measured(rows: Sequence[Row], n: int) -> list[Row]:
    """Returns the rows of every seed at one n."""
    return [one for row in rows for one in row["measured"] if one["n"] == n]


def section(rows: Sequence[Row]) -> str:
    """Returns a table of theory and worlds for each n."""
    lines = []
    for n in NS:
        found = measured(rows, n)
        lines.append(
            (
                str(n),
                f"{best_of_n_win_rate(n):.4f}",
                " ".join(f"{one['win_rate']:.4f}" for one in found),
                f"{best_of_n_kl(n):.3f}",
                " ".join(f"{one['kl']:.3f}" for one in found),
                points([one["gap"] for one in found]),
            )
        )
    head = (
        "n",
        "win rate, n / (n + 1)",
        "of each world",
        "KL, log n - (n - 1) / n",
        "of each world",
        "points under the frontier",
    )
    return f"""Best-of-n's probabilities are known for every answer, so these are sums, not samples. Without ties both
formulas would be exact. Here the likeliest answers have a share of their own, draws of them tie, and the win rate and
the KL are a little under what the formulas say: they are upper bounds. The frontier is the highest win rate that any
policy can have at that KL.

{table(head, lines)}"""
