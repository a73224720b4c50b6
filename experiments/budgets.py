"""What few groups, or groups of few prompts, cost."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from experiments.cells import Cell, Row, slug
from experiments.exact_world import PROMPTS
from experiments.tables import points, spread, table
from experiments.training import METHODS, Budget, trained_figures

NAME = "budgets"
COMPARED = ("auto", "alpha .5", "SFT only")
GROUPS = {1024: 2000, 4096: 2000, 16384: 2000, 65536: 3000}
"""With the steps that each is trained for."""
FEW_PROMPTS = (2, 4)
DEFAULT = "auto"
LONGER = {8192: 8000, 65536: 12000}
"""Steps of the default that see as many candidates as the same steps / 4 on all eight of a group would."""
SEEDS = range(3)


def cells(quick: bool) -> list[Cell]:
    if quick:
        return [
            _cell("alpha .5", Budget(groups=256, steps=60)),
            _cell("alpha .5", Budget(groups=256, steps=60, prompts=2)),
        ]
    by_groups = [_cell(method, Budget(groups=groups, steps=GROUPS[groups])) for groups in GROUPS for method in COMPARED]
    few = [_cell(method, Budget(prompts=prompts)) for prompts in FEW_PROMPTS for method in COMPARED]
    return [*by_groups, *few, *(_longer(groups, seed) for groups in LONGER for seed in SEEDS)]


def _cell(method: str, budget: Budget) -> Cell:
    name = f"{NAME}/groups-{budget.groups}-prompts-{budget.prompts}-{slug(method)}"
    return Cell(name, run, {"method": method, "budget": asdict(budget)})


def _longer(groups: int, seed: int) -> Cell:
    budget = Budget(groups=groups, steps=LONGER[groups])
    return Cell(f"{NAME}/longer-{groups}-seed-{seed}", run_longer, {"seed": seed, "budget": asdict(budget)})


def run(method: str, budget: dict[str, Any]) -> dict[str, Any]:
    return trained_figures(METHODS[method], 0, Budget(**budget))


def run_longer(seed: int, budget: dict[str, Any]) -> dict[str, Any]:
    return trained_figures(METHODS[DEFAULT], seed, Budget(**budget))


def longer(rows: Sequence[Row], groups: int) -> list[Row]:
    """The default's rows with `LONGER` steps, one a seed."""
    return [row for row in rows if "seed" in row and row["budget"]["groups"] == groups]


def of_method(rows: Sequence[Row], method: str) -> list[Row]:
    """Those with groups of every prompt, by how many."""
    found = [row for row in rows if row.get("method") == method and row["budget"]["prompts"] == PROMPTS]
    return sorted(found, key=lambda row: int(row["budget"]["groups"]))


def section(rows: Sequence[Row]) -> str:
    by_groups = [
        (f"{row['budget']['groups']:,}", method, *_columns(row))
        for groups in GROUPS
        for method in COMPARED
        for row in of_method(rows, method)
        if row["budget"]["groups"] == groups
    ]
    head = ("groups", "", "win rate", "KL", "points under the frontier", "KL(best-of-n, policy)")
    few = sorted((row for row in rows if "other_prompts" in row), key=lambda row: int(row["budget"]["prompts"]))
    by_prompts = [
        (f"{row['budget']['prompts']} of {PROMPTS}", row["method"], where, *_columns(one))
        for row in few
        for where, one in (("those", row), ("the others", row["other_prompts"]))
    ]
    by_steps = [
        (
            f"{groups:,}",
            f"{LONGER[groups]:,}",
            spread([row["win_rate"] for row in found], 3),
            spread([row["kl"] for row in found], 2),
            points([row["gap"] for row in found]),
            spread([row["from_best_of_n"] for row in found], 3),
            str(len(found)),
        )
        for groups in LONGER
        if (found := longer(rows, groups))
    ]
    return f"""Best-of-8, one world, {GROUPS[1024]:,} steps ({GROUPS[65536]:,} for the most groups).

{table(head, by_groups)}

`{DEFAULT}` reads two candidates of a group in a step. With as many steps as it takes to read all eight as often:

{table(("groups", "steps", *head[2:], "seeds"), by_steps) if by_steps else "Not measured yet."}

Groups of some prompts only, {Budget().groups:,} of them: measured on those prompts, and on the others. Rewards share
what they say of neighbouring words, and nothing else, between prompts.

{table(("prompts", "", "measured on", *head[2:]), by_prompts) if by_prompts else "Not measured yet."}"""


def _columns(row: Row) -> tuple[str, ...]:
    return f"{row['win_rate']:.3f}", f"{row['kl']:.2f}", f"{100 * row['gap']:.2f}", f"{row['from_best_of_n']:.3f}"
