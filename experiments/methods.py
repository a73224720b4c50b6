"""Compares the losses with each other, at best-of-8."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bonbon.theory import best_gain, best_of_n_kl
from experiments.cells import Cell, Row, slug
from experiments.tables import points, spread, table
from experiments.training import CANDIDATES, METHODS, Budget, trained_figures

NAME = "methods"
SEEDS = range(1)


def cells(quick: bool) -> list[Cell]:
    if quick:
        return [_cell(method, 0, Budget(groups=512, steps=60)) for method in METHODS]
    return [_cell(method, seed, Budget()) for seed in SEEDS for method in METHODS]


def _cell(method: str, seed: int, budget: Budget) -> Cell:
    return Cell(f"{NAME}/seed-{seed}-{slug(method)}", run, {"method": method, "seed": seed, "budget": asdict(budget)})


def run(method: str, seed: int, budget: dict[str, Any]) -> dict[str, Any]:
    return trained_figures(METHODS[method], seed, Budget(**budget))


def of_method(rows: Sequence[Row], method: str) -> list[Row]:
    """Returns one row per seed."""
    return [row for row in rows if row["method"] == method]


def section(rows: Sequence[Row]) -> str:
    budget = Budget(**rows[0]["budget"])
    lines = [
        (
            method,
            spread([row["win_rate"] for row in found], 3),
            spread([row["kl"] for row in found], 2),
            spread([row["gain"] for row in found], 2),
            points([row["gap"] for row in found]),
            spread([row["from_best_of_n"] for row in found], 3),
            spread([row["length"] for row in found], 2),
        )
        for method in METHODS
        if (found := of_method(rows, method))
    ]
    head = ("", "win rate", "KL", "gain in J", "points under the frontier", "KL(best-of-n, policy)", "words")
    n, count = budget.n, len({row["seed"] for row in rows})
    worlds = f"{count} worlds" if count > 1 else "one world"
    return f"""Every loss gets the same {budget.groups:,} groups of {n}, {budget.steps:,} steps of {CANDIDATES}
candidates and one learning rate ({budget.learning_rate:g}), in {worlds}. `gvpo`, `vbon` and `bond` read
all candidates of {CANDIDATES // n} groups in a step, the other losses two of each of {CANDIDATES // 2} groups.
Best-of-{n} has a KL of at most {best_of_n_kl(n):.3f} and a win rate of {n / (n + 1):.3f}; no policy gains more than
{best_gain(n):.2f} in J.

{table(head, lines)}"""
