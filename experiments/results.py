"""Generates the results page from the cells' files. Every figure on it comes from a file."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from experiments import best_of_n, budgets, methods, pictures, real, rounds, text
from experiments.cells import Cell, Row
from experiments.goals import shortcomings

EXPERIMENTS: dict[str, tuple[ModuleType, str]] = {
    best_of_n.NAME: (best_of_n, "Best-of-n against theory"),
    methods.NAME: (methods, "Which loss"),
    budgets.NAME: (budgets, "Few groups, few prompts"),
    text.NAME: (text, "Text"),
    rounds.NAME: (rounds, "Rounds"),
}
HEAD = """# Results

Made by `make experiments` from the files in `experiments/data`; do not edit it by hand. With `ARGS=--quick` everything
runs in small, to show that it does.

The **exact world** is small enough to be summed over: 8 prompts, every answer of up to 5 of 7 words (19,608 for each
prompt), a reward without ties, and a language model of 0.1 million parameters that learnt a random Markov chain. Win
rate, KL and KL(best-of-n, policy) of any policy are computed, not sampled, so there are no intervals. Win rates are
against one draw of the base, ties count half, and KL is from the base, in nats. **Points under the frontier** is how
much more often the best possible policy at the same KL would win, in percentage points: what a method wastes. **Gain in
J** is how far the objective c W - KL is above the base's own ([theory.md](theory.md#the-objective)).

The losses are named as in `train.loss` ([training.md](training.md#the-loss)). `gvpo` learns from all candidates of a
group, and `gvpo + SFT` is `gvpo` with `train.sft_weight = 1`. `vbon` and `bond` also learn from all candidates. The
others compare two: `bonbon` and `paper` are BoNBoN with its terms in units of their variance and as printed, `sft`
imitates the best of each group, `ipo` is the contrast of best and worst alone, and `dpo` has beta .1. Unless
a row says that the policy goes on with its own draws, it learns from logged groups only, so that the page shows what
each loss does. In the text world the whole program runs, with `train.refine = "off"` for those rows."""

RELATED = """## Related work

The loss family `bonbon` and the target that all of this aims at are from BoNBoN (Gui, Gârbacea and Veitch, 2024):

```bibtex
@inproceedings{gui2024bonbon,
  title     = {{BoNBoN} Alignment for Large Language Models and the Sweetness of Best-of-n Sampling},
  author    = {Gui, Lin and G{\\^a}rbacea, Cristina and Veitch, Victor},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2406.00832},
}
```

Other work distils best-of-n or optimises a win rate as well. `bond` and `vbon` are compared above; the others were not
run here.

- **GVPO** (Zhang et al., [arXiv 2504.19599](https://arxiv.org/abs/2504.19599)) is the regression that the default loss
  uses, with any reward in the place of c U.
- **BOND** (Sessa et al., [arXiv 2407.14622](https://arxiv.org/abs/2407.14622)) minimises both directions of the
  divergence from best-of-n. Its reference moves with the policy, while here it remains the base.
- **vBoN** (Amini et al., [arXiv 2407.06057](https://arxiv.org/abs/2407.06057)) minimises KL(policy || best-of-n) with
  reinforcement learning.
- **WIND** (Yang et al., [arXiv 2410.20727](https://arxiv.org/abs/2410.20727)) shows that repeated best-of-n
  distillation approximates a regularised game of win rates, and solves the game instead.
- **InfAlign** (Balashankar et al., [arXiv 2412.19792](https://arxiv.org/abs/2412.19792)) transforms a calibrated reward
  so that the policy is best when it is used with best-of-n, instead of one draw.
- **RLOO** (Ahmadian et al., [arXiv 2402.14740](https://arxiv.org/abs/2402.14740)) is REINFORCE with the other draws of
  a group as the baseline. On the policy's own draws, the gradient of `gvpo` is that of RLOO with the reward c U.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """The rows of every experiment's computed cells, and the number of cells."""

    rows: Mapping[str, Sequence[Row]]
    missing: Mapping[str, int]


def read(directory: Path, *, quick: bool) -> Found:
    cells: dict[str, list[Cell]] = {name: module.cells(quick) for name, (module, _) in EXPERIMENTS.items()}
    rows = {name: [row for cell in some if (row := cell.read(directory)) is not None] for name, some in cells.items()}
    missing = {name: len(cells[name]) - len(rows[name]) for name in cells}
    return Found(rows | {real.NAME: real.rows(directory)}, missing)


def page(found: Found, pictures_at: str = "pictures") -> str:
    """Returns the page in Markdown. It names what has not been computed."""
    parts = [HEAD, "## Where it falls short", shortcomings(found.rows)]
    for name, (module, title) in EXPERIMENTS.items():
        section: Callable[[Sequence[Row]], str] = module.section
        rows, missing = found.rows[name], found.missing[name]
        if not rows and not missing:
            continue
        parts.append(f"## {title}")
        if missing:
            parts.append(
                f"**{missing} of {missing + len(rows)} cells have not been computed yet** (`make experiments`)."
            )
        if rows:
            parts += [section(rows), f"![{title}]({pictures_at}/{pictures.file_name(name)})"]
    parts.append("## Real language models")
    measured = found.rows[real.NAME]
    if measured:
        parts += [real.section(measured), f"![Real language models]({pictures_at}/{pictures.file_name(real.NAME)})"]
    else:
        parts.append("Not measured yet (`python -m experiments.real --help`).")
    return "\n\n".join([*parts, RELATED])


def write(data: Path, page_file: Path, pictures_directory: Path, *, quick: bool) -> None:
    """Writes the page and its pictures."""
    found = read(data, quick=quick)
    pictures.save(found.rows, pictures_directory)
    at = os.path.relpath(pictures_directory, page_file.parent)
    page_file.write_text(page(found, at))
