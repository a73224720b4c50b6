"""How much the weight of the SFT term matters, for models of three sizes."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bonbon.theory import best_of_n_kl
from experiments.cells import Cell, Row
from experiments.exact_world import Size
from experiments.tables import table
from experiments.training import Budget, Method, trained_figures
from trainer.training.loss import Alpha

NAME = "alpha"
SIZES = {"0.1M": Size(64, 2), "0.7M": Size(128, 4), "3M": Size(256, 4)}
ALPHAS: tuple[Alpha, ...] = (0.0, 0.5, 0.8, 0.95, 1.0, "auto")
BUDGET = Budget(steps=600, learning_rate=1e-3)


def cells(quick: bool) -> list[Cell]:
    if quick:
        return [_cell("0.1M", alpha, Budget(groups=512, steps=60)) for alpha in (0.5, 1.0)]
    return [_cell(size, alpha, BUDGET) for size in SIZES for alpha in ALPHAS]


def _cell(size: str, alpha: Alpha, budget: Budget) -> Cell:
    name = f"{NAME}/{size}-{alpha}"
    return Cell(name, run, {"size": size, "alpha": alpha, "budget": asdict(budget)})


def run(size: str, alpha: Alpha, budget: dict[str, Any]) -> dict[str, Any]:
    return trained_figures(Method("bonbon", alpha, "random"), 0, Budget(**budget), SIZES[size])


def of_size(rows: Sequence[Row], size: str) -> list[Row]:
    return [row for row in rows if row["size"] == size]


def section(rows: Sequence[Row]) -> str:
    sizes = [size for size in SIZES if of_size(rows, size)]
    lines = [
        (str(alpha), *(_cell_text([row for row in of_size(rows, size) if row["alpha"] == alpha]) for size in sizes))
        for alpha in ALPHAS
    ]
    return f"""The loss is `alpha` times SFT and the rest its contrast, each pair's in units of its own variance. One
world a size, {BUDGET.groups:,} groups of {BUDGET.n}, {BUDGET.steps:,} steps at {BUDGET.learning_rate:g}. Each field:
KL (best-of-{BUDGET.n}'s is at most {best_of_n_kl(BUDGET.n):.2f}), and points of win rate under the frontier.

{table(("alpha", *(f"{size} parameters" for size in sizes)), lines)}"""


def _cell_text(rows: Sequence[Row]) -> str:
    return f"{rows[0]['kl']:.2f}, {100 * rows[0]['gap']:.2f}" if rows else ""
