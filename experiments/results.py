"""Makes the page of results from the cells' files: nothing on it is written by hand but what the figures cannot say."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from experiments import alpha, best_of_n, budgets, methods, pictures, text
from experiments.cells import Cell, Row
from experiments.goals import shortcomings

EXPERIMENTS: dict[str, tuple[ModuleType, str]] = {
    best_of_n.NAME: (best_of_n, "Best-of-n against theory"),
    methods.NAME: (methods, "Which loss"),
    alpha.NAME: (alpha, "How much alpha matters"),
    budgets.NAME: (budgets, "Few groups, few prompts"),
    text.NAME: (text, "Text"),
}
HEAD = """# Results

Made by `make experiments` from the files in `experiments/data`; do not edit it by hand. With `ARGS=--quick` everything
runs in small, to show that it does.

The **exact world** is small enough to be summed over: 8 prompts, every answer of up to 5 of 7 words (19,608 for each
prompt), a reward without ties, and a language model of 0.1 million parameters (unless said otherwise) that learnt a
random Markov chain. Win rate, KL and KL(best-of-n, policy) of any policy are computed, not sampled, so there are no
intervals; a range is over worlds, that is seeds. Win rates are against one draw of the base, ties half; KL is from
the base, in nats. **Points under the frontier** is how much more often the best possible policy at the same KL would
win, in percentage points: what a method wastes.

The losses: `SFT only` imitates the best of each group; `contrast only` is IPO between best and worst; `paper` adds
SFT to it with the published weight, .005; `DPO` has beta .1. `alpha .5` divides each contrast by its own variance and
pairs the best with a random other candidate; `alpha .5, worst` with the worst. `auto` is the program's default:
`alpha .5` for prompts that were asked a few times, and for prompts that were asked often, as all are in the exact
world, a divergence on ranks among all their candidates. The trainer then brings a policy that went further than
best-of-n back to its KL; in the exact world that is left out, so that what the loss does is seen."""


@dataclass(frozen=True, slots=True)
class Found:
    """The rows of every experiment's computed cells, and how many cells there should be."""

    rows: Mapping[str, Sequence[Row]]
    missing: Mapping[str, int]


def read(directory: Path, *, quick: bool) -> Found:
    cells: dict[str, list[Cell]] = {name: module.cells(quick) for name, (module, _) in EXPERIMENTS.items()}
    rows = {name: [row for cell in some if (row := cell.read(directory)) is not None] for name, some in cells.items()}
    return Found(rows, {name: len(cells[name]) - len(rows[name]) for name in cells})


def page(found: Found, pictures_at: str = "pictures") -> str:
    """In Markdown. What has not been computed is said to be missing."""
    parts = [HEAD, "## Where it falls short", shortcomings(found.rows)]
    for name, (module, title) in EXPERIMENTS.items():
        section: Callable[[Sequence[Row]], str] = module.section
        rows, missing = found.rows[name], found.missing[name]
        parts.append(f"## {title}")
        if missing:
            parts.append(
                f"**{missing} of {missing + len(rows)} cells have not been computed yet** (`make experiments`)."
            )
        if rows:
            parts += [section(rows), f"![{title}]({pictures_at}/{pictures.file_name(name)})"]
    return "\n\n".join(parts) + "\n"


def write(data: Path, page_file: Path, pictures_directory: Path, *, quick: bool) -> None:
    """The page and its pictures."""
    found = read(data, quick=quick)
    pictures.save(found.rows, pictures_directory)
    at = os.path.relpath(pictures_directory, page_file.parent)
    page_file.write_text(page(found, at))
