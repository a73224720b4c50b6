"""A snapshot's groups in memory: checked, with every candidate's rank among all that were drawn for its prompt."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bonbon.errors import UserError

Rows = NDArray[np.int64]
Values = NDArray[np.float64]

POOLED = 8
"""From so many groups of one prompt on, ranks among all of their candidates say more than those in a group."""
COLUMNS = [
    "group_id",
    "prompt_digest",
    "prompt_token_ids",
    "candidates",
    "rewards",
    "logprobs",
    "n",
    "temperature",
    "max_tokens",
    "held_out",
]


class Groups:
    """The groups of a snapshot, in its order; a row's number is its place there. Candidates are worst first.

    Candidates of all groups lie one after another in flat arrays; those of row r begin at `starts[r]`.

    Args:
        path: the snapshot's Parquet file.
        pool: whether ranks are among all candidates of a prompt, where it has `POOLED` groups or more.

    Attributes:
        train: rows to train on.
        held_out: rows whose prompts are held out.
        n, temperatures, max_tokens, starts, prompt_lengths: [rows].
        owners: the row of each candidate, [candidates].
        below: how many candidates are strictly below the best, [rows].
        lengths: tokens of prompt and longest candidate, [rows].
        sequence_lengths: tokens of prompt and candidate, [candidates].
        tokens, logprobs: of each candidate, under the sampler as it was logged, [candidates].
        ranks: of each candidate, 1 the lowest, among the `ranked` of its group, or among all that were drawn for its
            prompt with the same settings; equal rewards share the mean of their ranks. [candidates] both.

    Raises:
        UserError: a group is not clean; the message says which and why.
    """

    def __init__(self, path: Path, *, pool: bool = False) -> None:
        table = pq.read_table(path, columns=COLUMNS).combine_chunks()
        _check(table)
        self.n: Rows = table.column("n").to_numpy().astype(np.int64)
        self.starts: Rows = np.concatenate([[0], np.cumsum(self.n)[:-1]]).astype(np.int64)
        self.temperatures: NDArray[np.float32] = table.column("temperature").to_numpy().astype(np.float32)
        self.max_tokens: Rows = table.column("max_tokens").to_numpy().astype(np.int64)
        self.logprobs, rewards = _flat(table, "logprobs"), _flat(table, "rewards")
        self._prompts = _Ragged(table.column("prompt_token_ids").combine_chunks())
        self._candidates = _Ragged(table.column("candidates").combine_chunks().flatten())
        self.tokens = self._candidates.lengths
        self.owners: Rows = np.repeat(np.arange(len(self.n), dtype=np.int64), self.n)
        self.prompt_lengths = self._prompts.lengths
        self.sequence_lengths: Rows = self.prompt_lengths[self.owners] + self.tokens
        self.lengths: Rows = np.maximum.reduceat(self.sequence_lengths, self.starts)
        best = rewards[self.starts + self.n - 1][self.owners]
        self.below: Rows = np.add.reduceat((rewards < best).astype(np.int64), self.starts)
        held_out = table.column("held_out").to_numpy(zero_copy_only=False).astype(bool)
        self.train: Rows = np.flatnonzero(~held_out).astype(np.int64)
        self.held_out: Rows = np.flatnonzero(held_out).astype(np.int64)
        pools = np.arange(len(self.n))
        if pool:
            settings = [table.column(name).to_pylist() for name in ("prompt_digest", "temperature", "max_tokens")]
            pools = _pools(list(zip(*settings, strict=True)))
        self.ranks, self.ranked = pooled_ranks(rewards, pools[self.owners])

    def __len__(self) -> int:
        return len(self.n)

    def prompt(self, row: int) -> NDArray[np.int32]:
        """Token ids."""
        return self._prompts[row]

    def sequence(self, row: int, place: int) -> NDArray[np.int32]:
        """Token ids of prompt and candidate at this place, 0 the worst."""
        return np.concatenate([self._prompts[row], self._candidates[int(self.starts[row]) + place]])

    def candidates_of(self, rows: Rows) -> Rows:
        """Where the candidates of these rows are in the flat arrays."""
        return np.concatenate([np.arange(self.starts[row], self.starts[row] + self.n[row]) for row in rows])


class _Ragged:
    """A column of lists of token ids, as one flat array."""

    def __init__(self, column: pa.ListArray) -> None:
        self._offsets = column.offsets.to_numpy()
        self._values = column.values.to_numpy()
        self.lengths: Rows = np.diff(self._offsets).astype(np.int64)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        values: NDArray[np.int32] = self._values[self._offsets[row] : self._offsets[row + 1]]
        return values


def _pools(kinds: Sequence[tuple[object, ...]]) -> Rows:
    """A number for each row, [rows]: one for all rows of a kind that `POOLED` or more have, its own for any other."""
    counts = Counter(kinds)
    numbers: dict[object, int] = {}
    keys = (kind if counts[kind] >= POOLED else row for row, kind in enumerate(kinds))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def pooled_ranks(rewards: Values, pools: Rows) -> tuple[Values, Values]:
    """Rank of each reward in its pool, 1 the lowest, and the pool's size, [candidates] both; ties share their mean."""
    ranks, sizes = np.empty(len(rewards)), np.bincount(pools)
    order = np.lexsort((rewards, pools))
    for members in np.split(order, np.cumsum(sizes)[:-1]):
        _, which, counts = np.unique(rewards[members], return_inverse=True, return_counts=True)
        ranks[members] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks, sizes[pools].astype(np.float64)


def _flat(table: pa.Table, name: str) -> Values:
    flat: Values = table.column(name).combine_chunks().flatten().to_numpy()
    return flat


def _check(table: pa.Table) -> None:
    rewards, logprobs = table.column("rewards").to_pylist(), table.column("logprobs").to_pylist()
    n, temperature = table.column("n").to_numpy(), table.column("temperature").to_numpy()
    prompt_lengths = pc.list_value_length(table.column("prompt_token_ids")).to_numpy()
    sizes = pc.list_value_length(table.column("candidates")).to_numpy()
    for wrong, why in (
        (n < 2, "has fewer than two candidates"),
        (sizes != n, "has not the candidates that its n says"),
        (~np.array([np.isfinite(some).all() for some in rewards]), "has a reward that is not finite"),
        (
            np.array([some != sorted(some) for some in rewards]),
            "has candidates that are not in the order of their rewards",
        ),
        (np.array([some[-1] <= some[0] for some in rewards]), "is tied: its best reward is not above its worst"),
        (~np.array([np.isfinite(some).all() for some in logprobs]), "has a log-probability that is not finite"),
        (temperature <= 0, "was drawn greedily, so its candidates are no draws of the policy"),
        (prompt_lengths == 0, "has an empty prompt"),
    ):
        if wrong.any():
            group = table.column("group_id")[int(np.flatnonzero(wrong)[0])].as_py()
            raise UserError(
                f"{int(wrong.sum())} of the snapshot's {wrong.size} groups must not be trained on: group {group} {why}"
                "; take the snapshot anew from the pair log, which leaves such groups out"
            )
