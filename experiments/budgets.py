"""Measures the cost of few groups or few prompts, and the benefit of more steps."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bonbon.settings import TrainSettings
from experiments import distilled
from experiments.cells import Cell, Row, slug
from experiments.exact_world import PROMPTS
from experiments.tables import table
from experiments.training import METHODS, Budget, trained_figures

NAME = "budgets"
DEFAULT = distilled.OFFLINE
COMPARED = (DEFAULT, "bonbon")
GROUPS = (1024, 16384)
FEW_PROMPTS = 4
LONGER = Budget(steps=2048)
"""Four times the steps of the other policies."""
WHOLE = distilled.DEFAULT
"""What the program does by default: after the logged groups, the policy learns from its own draws."""


def cells(quick: bool) -> list[Cell]:
    if quick:
        few = Budget(groups=256, steps=60)
        return [
            *(_cell(method, few) for method in COMPARED),
            _cell(WHOLE, few, own_tokens=5_000),
            _cell(DEFAULT, Budget(groups=256, steps=60, prompts=2)),
        ]
    by_groups = [_cell(method, Budget(groups=groups)) for groups in GROUPS for method in COMPARED]
    whole = _cell(WHOLE, Budget(), own_tokens=TrainSettings().refine_tokens)
    return [_cell(DEFAULT, LONGER), whole, *by_groups, _cell(DEFAULT, Budget(prompts=FEW_PROMPTS))]


def _cell(method: str, budget: Budget, **own: int) -> Cell:
    name = f"{NAME}/groups-{budget.groups}-prompts-{budget.prompts}-steps-{budget.steps}-{slug(method)}"
    return Cell(name, run, {"method": method, "budget": asdict(budget), **own})


def run(method: str, budget: dict[str, Any], own_tokens: int = 0) -> dict[str, Any]:
    on_logged_groups = METHODS[DEFAULT if method == WHOLE else method]
    return trained_figures(on_logged_groups, 0, Budget(**budget), own_tokens=own_tokens)


def longer(rows: Sequence[Row]) -> Row | None:
    """Returns the row of the default loss with more steps."""
    return next((row for row in rows if row["budget"] == asdict(LONGER)), None)


def of_method(rows: Sequence[Row], method: str) -> list[Row]:
    """Returns the rows with groups of every prompt, sorted by number of groups and steps."""
    found = [row for row in rows if row["method"] == method and row["budget"]["prompts"] == PROMPTS]
    return sorted(found, key=lambda row: (int(row["budget"]["steps"]), int(row["budget"]["groups"])))


def section(rows: Sequence[Row]) -> str:
    head = ("win rate", "KL", "gain in J", "points under the frontier", "KL(best-of-n, policy)")
    by_groups = [
        (f"{row['budget']['groups']:,}", f"{row['budget']['steps']:,}", method, *_columns(row))
        for method in (DEFAULT, WHOLE, "bonbon")
        for row in of_method(rows, method)
    ]
    few = sorted((row for row in rows if "other_prompts" in row), key=lambda row: int(row["budget"]["prompts"]))
    by_prompts = [
        (f"{row['budget']['prompts']} of {PROMPTS}", row["method"], where, *_columns(one))
        for row in few
        for where, one in (("those", row), ("the others", row["other_prompts"]))
    ]
    groups = few[0]["budget"]["groups"] if few else 0
    return f"""Groups of 8 in one world, with the learning rate and the candidates in a step of the section before.
A policy that goes on with its own draws uses as many tokens as `train.refine_tokens` allows by default.

{table(("groups", "steps", "", *head), by_groups)}

Groups of some prompts only, {groups:,} of them: measured on those prompts, and on the others. Rewards share what they
say of neighbouring words, and nothing else, between prompts.

{table(("prompts", "", "measured on", *head), by_prompts) if by_prompts else "Not measured yet."}"""


def _columns(row: Row) -> tuple[str, ...]:
    return (
        f"{row['win_rate']:.3f}",
        f"{row['kl']:.2f}",
        f"{row['gain']:.2f}",
        f"{100 * row['gap']:.2f}",
        f"{row['from_best_of_n']:.3f}",
    )
