"""The losses against each other, at best-of-8 with several seeds, and for n from 2 to 16."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bonbon.theory import best_of_n_kl
from experiments.cells import Cell, Row, slug
from experiments.tables import points, spread, table
from experiments.training import METHODS, Budget, trained_figures

NAME = "methods"
SEEDS = range(3)
OTHER_NS = (2, 4, 16)


def cells(quick: bool) -> list[Cell]:
    if quick:
        return [_cell(method, 0, Budget(groups=512, steps=60)) for method in METHODS]
    ablation = [_cell(method, seed, Budget()) for seed in SEEDS for method in METHODS]
    return ablation + [_cell(method, 0, Budget(n=n)) for n in OTHER_NS for method in METHODS]


def _cell(method: str, seed: int, budget: Budget) -> Cell:
    name = f"{NAME}/n-{budget.n}-seed-{seed}-{slug(method)}"
    return Cell(name, run, {"method": method, "seed": seed, "budget": asdict(budget)})


def run(method: str, seed: int, budget: dict[str, Any]) -> dict[str, Any]:
    return trained_figures(METHODS[method], seed, Budget(**budget))


def of_method(rows: Sequence[Row], method: str, n: int) -> list[Row]:
    """One row a seed."""
    return [row for row in rows if row["method"] == method and row["budget"]["n"] == n]


def section(rows: Sequence[Row]) -> str:
    budget = Budget()
    lines = [
        (
            method,
            spread([row["win_rate"] for row in found], 3),
            spread([row["kl"] for row in found], 2),
            points([row["gap"] for row in found]),
            spread([row["from_best_of_n"] for row in found], 3),
            spread([row["length"] for row in found], 2),
            str(len(found)),
        )
        for method in METHODS
        if (found := of_method(rows, method, budget.n))
    ]
    head = ("", "win rate", "KL", "points under the frontier", "KL(best-of-n, policy)", "words", "seeds")
    by_n = [
        (method, *(_both(of_method(rows, method, n)) for n in (2, 4, 8, 16)))
        for method in METHODS
        if any(of_method(rows, method, n) for n in OTHER_NS)
    ]
    bounds = ("KL of best-of-n", *(f"{best_of_n_kl(n):.2f}" for n in (2, 4, 8, 16)))
    return f"""Every loss gets the same {budget.groups:,} groups of {budget.n}, {budget.steps:,} steps of 64 pairs and
one learning rate ({budget.learning_rate:g}). Best-of-{budget.n}'s KL is at most {best_of_n_kl(budget.n):.3f}, its win
rate {budget.n / (budget.n + 1):.3f}. A mean over the worlds, and the lowest and highest of them:

{table(head, lines)}

The same for other n, one world each: KL, and points of win rate under the frontier.

{table(("", "n = 2", "n = 4", "n = 8", "n = 16"), [bounds, *by_n])}"""


def _both(rows: Sequence[Row]) -> str:
    first = [row for row in rows if row["seed"] == 0]
    return f"{first[0]['kl']:.2f}, {100 * first[0]['gap']:.2f}" if first else ""
