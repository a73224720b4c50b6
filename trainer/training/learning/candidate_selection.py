"""Selects the candidates of a group that a loss learns from."""

from typing import Literal

import numpy as np

from bonbon.pairs.reading.snapshot import Split
from trainer.data.groups import Groups, Rows
from trainer.training.learning.loss import OF_ALL_CANDIDATES, LossName

Partner = Literal["random", "worst"]


def trainable_rows(groups: Groups, loss: LossName) -> Rows:
    """Returns the training groups that a loss can learn from.

    Losses over all candidates need draws of the base for the prompt. The others need a best candidate strictly above
    another, and their targets are only valid for ranks among draws of the base.
    """
    rows = groups.rows_of(Split.TRAIN)
    usable = groups.comparable if loss in OF_ALL_CANDIDATES else groups.by_base & (groups.below > 0)
    return rows[usable[rows]]


def candidates(groups: Groups, rows: Rows, loss: LossName, *, seed: int, step: int) -> list[Rows]:
    """Returns the candidates of each row by their position in the flat arrays, worst first.

    `gvpo`, `vbon` and `bond` use all candidates. `bonbon` pairs the best with one sampled from those strictly below it.
    The sample is a function of seed, step and row, so neither resuming a run nor splitting a batch changes it. The
    other losses use the best and the worst.
    """
    if loss in OF_ALL_CANDIDATES:
        return [groups.candidates_of(int(row)) for row in rows]
    others = np.zeros(len(rows), dtype=np.int64)
    if loss == "bonbon":
        others = (np.random.default_rng([seed, step]).random(len(groups))[rows] * groups.below[rows]).astype(np.int64)
    starts, best = groups.starts[rows], groups.n[rows] - 1
    return list(np.stack([starts + others, starts + best], axis=1))
