"""Holds groups of scored candidates in memory, validated, with every candidate's win chance against the base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from numpy.typing import NDArray

from bonbon.errors import UserError
from bonbon.pairs.reading.snapshot import Split
from bonbon.theory import mid_ranks

Rows = NDArray[np.int64]
Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
Tokens = NDArray[np.int32]

T = TypeVar("T")

log = structlog.get_logger(__name__)

Distribution = tuple[object, ...]
"""The distribution that a candidate was drawn from, apart from the policy: the prompt and the sampling settings."""
OF_DISTRIBUTION = ("prompt_digest", "temperature", "max_tokens", "stop")
COLUMNS = [
    "group_id",
    "version",
    "prompt_token_ids",
    "candidates",
    "rewards",
    "logprobs",
    "n",
    "split",
    *OF_DISTRIBUTION,
]


MAX_NAMED = 20
"""The most groups that a warning names."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups, numbered by row. The candidates of a group are sorted worst first.

    The candidates of all groups are stored one after another in flat arrays; those of row r begin at `starts[r]`.

    Attributes:
        numbers: Position of each row in the files, before groups were set aside, [rows].
        distributions: The distribution of each row's candidates, [rows].
        by_base: Whether the group was drawn from the base, [rows].
        split: Whether the group is for training, validation or tests, [rows].
        n: Number of candidates, [rows].
        temperatures: Sampling temperature, [rows].
        logprobs, rewards: Logged log-probability under the sampler and logged reward, [candidates].
        wins: Estimated win chance against one draw of the base, ties as half, [candidates]; NaN where the base has not
            drawn for the prompt. See `win_chances`.
        prompts: Token ids, [rows].
        completions: Token ids, [candidates].
    """

    numbers: Rows
    distributions: list[Distribution]
    by_base: Flags
    split: NDArray[np.str_]
    n: Rows
    temperatures: NDArray[np.float32]
    logprobs: Values
    rewards: Values
    wins: Values
    prompts: "Ragged"
    completions: "Ragged"

    @classmethod
    def read(cls, *paths: Path, base: str, opponents: "Opponents | None" = None, vocabulary: int | None = None) -> Self:
        """Reads groups from Parquet files with the columns of `bonbon.pairs.reading.snapshot.SCHEMA`.

        Args:
            base: The name of the base.
            opponents: The rewards that candidates are compared with; by default those of the base's groups in the
                files.
            vocabulary: Number of token ids that the model knows. Groups with other ids are set aside with a warning
                that names them, because tokens may have been added to the tokenizer without resizing the embeddings.

        Raises:
            UserError: A group cannot be trained on; the message names it and says why.
        """
        table = pa.concat_tables(pq.read_table(path, columns=COLUMNS) for path in paths).combine_chunks()
        numbers: Rows = np.arange(len(table), dtype=np.int64)
        if vocabulary is not None and len(strange := _with_unknown_tokens(table, vocabulary)):
            numbers = np.setdiff1d(numbers, strange)
            table = table.take(numbers).combine_chunks()
        _check(table)
        n: Rows = table.column("n").to_numpy().astype(np.int64)
        by_base = np.array([name == base for name in table.column("version").to_pylist()], dtype=bool)
        distributions, rewards = _distributions(table), _flat(table, "rewards")
        if opponents is None:
            opponents = _opponents(distributions, by_base, n, rewards)
        return cls(
            numbers=numbers,
            distributions=distributions,
            by_base=by_base,
            split=np.array(table.column("split").to_pylist()),
            n=n,
            temperatures=table.column("temperature").to_numpy().astype(np.float32),
            logprobs=_flat(table, "logprobs"),
            rewards=rewards,
            wins=_wins(distributions, n, rewards, opponents),
            prompts=Ragged.of(table.column("prompt_token_ids").combine_chunks()),
            completions=Ragged.of(table.column("candidates").combine_chunks().flatten()),
        )

    def __add__(self, other: Self) -> Self:
        """Concatenates the rows of both. Every candidate keeps its win chance."""
        return type(self)(
            **{one.name: _joined(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)}
        )

    def __len__(self) -> int:
        return len(self.n)

    @cached_property
    def starts(self) -> Rows:
        """Position of each row's first candidate, [rows]."""
        return np.concatenate([[0], np.cumsum(self.n)[:-1]]).astype(np.int64)

    @cached_property
    def owners(self) -> Rows:
        """The row of each candidate, [candidates]."""
        return np.repeat(np.arange(len(self.n), dtype=np.int64), self.n)

    @cached_property
    def opponents(self) -> "Opponents":
        """Rewards of everything drawn from the base here."""
        return _opponents(self.distributions, self.by_base, self.n, self.rewards)

    @cached_property
    def comparable(self) -> Flags:
        """Whether the base has drawn for the prompt, so that win chances are known, [rows]."""
        return np.isfinite(self.wins[self.starts])

    @cached_property
    def ranks(self) -> Values:
        """Rank of each candidate in its group, 1 the lowest; equal rewards share the mean of their ranks,
        [candidates]."""
        return np.concatenate([mid_ranks(some.tolist()) for some in np.split(self.rewards, self.starts[1:])])

    @cached_property
    def below(self) -> Rows:
        """Number of candidates strictly below their group's best, [rows]; 0 in a tied group."""
        best = self.rewards[self.starts + self.n - 1]
        return np.add.reduceat((self.rewards < best[self.owners]).astype(np.int64), self.starts)

    @cached_property
    def tokens(self) -> Rows:
        """Number of tokens of each candidate, [candidates]."""
        return self.completions.lengths

    def rows_of(self, split: Split) -> Rows:
        """Returns the rows of a split."""
        return np.flatnonzero(self.split == split).astype(np.int64)

    def candidates_of(self, row: int) -> Rows:
        """Returns the positions of a row's candidates in the flat arrays."""
        return np.arange(self.starts[row], self.starts[row] + self.n[row])


Opponents = Mapping[Distribution, Values]
"""The sorted rewards of everything that the base has drawn from each distribution."""


def win_chances(rewards: Values, opponents: Values) -> Values:
    """Returns estimates of U, each candidate's probability of winning against one draw of the base, [candidates].

    A candidate of another policy is compared with all N candidates of the base, ties as half. A candidate of the base
    is compared with the N - 1 others and, as half a win, with itself, which gives its mid-rank less a half, over N. In
    both cases, differences within a group are unbiased estimates of those of U minus the group's mean, and training
    uses nothing else.

    Args:
        rewards: Reward of each candidate, [candidates].
        opponents: Sorted rewards of the base's candidates, [N]. With N = 0 the result is NaN.
    """
    if not len(opponents):
        return np.full(len(rewards), np.nan)
    lower, upper = (np.searchsorted(opponents, rewards, side=side) for side in ("left", "right"))
    return np.asarray((lower + upper) / (2 * len(opponents)))


@dataclass(frozen=True, eq=False)
class Ragged:
    """Lists of token ids in one flat array, with the start of each list and the end of the last one."""

    values: Tokens
    offsets: Rows
    lengths: Rows = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.diff(self.offsets))

    @classmethod
    def of(cls, column: pa.ListArray) -> Self:
        offsets = column.offsets.to_numpy().astype(np.int64)
        return cls(column.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> Tokens:
        return self.values[self.offsets[place] : self.offsets[place + 1]]

    def __add__(self, other: Self) -> Self:
        offsets = np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]])
        return type(self)(np.concatenate([self.values, other.values]), offsets)


def _joined(left: T, right: T) -> T:
    if isinstance(left, np.ndarray):
        return np.concatenate([left, right])  # type: ignore[return-value]
    return left + right  # type: ignore[operator, no-any-return]


def _distributions(table: pa.Table) -> list[Distribution]:
    columns = [table.column(name).to_pylist() for name in OF_DISTRIBUTION]
    columns[-1] = [tuple(stop) for stop in columns[-1]]
    return list(zip(*columns, strict=True))


def _opponents(distributions: Sequence[Distribution], by_base: Flags, n: Rows, rewards: Values) -> Opponents:
    found: dict[Distribution, list[Values]] = {}
    for distribution, base, some in zip(distributions, by_base, np.split(rewards, np.cumsum(n)[:-1]), strict=True):
        if base:
            found.setdefault(distribution, []).append(some)
    return {distribution: np.sort(np.concatenate(some)) for distribution, some in found.items()}


def _wins(distributions: Sequence[Distribution], n: Rows, rewards: Values, opponents: Opponents) -> Values:
    groups = zip(distributions, np.split(rewards, np.cumsum(n)[:-1]), strict=True)
    return np.concatenate(
        [win_chances(some, opponents.get(distribution, np.empty(0))) for distribution, some in groups]
    )


def _flat(table: pa.Table, name: str) -> Values:
    flat: Values = table.column(name).combine_chunks().flatten().to_numpy()
    return flat


def _with_unknown_tokens(table: pa.Table, vocabulary: int) -> Rows:
    """Returns the rows with a token id that the model does not know, after a warning that names their groups.

    Raises UserError when every row has one.
    """
    prompts, candidates = (table.column(name).combine_chunks() for name in ("prompt_token_ids", "candidates"))
    completions = candidates.flatten()
    in_prompts = pc.list_parent_indices(prompts).filter(pc.greater_equal(prompts.flatten(), vocabulary))
    in_completions = pc.list_parent_indices(completions).filter(pc.greater_equal(completions.flatten(), vocabulary))
    owners = pc.list_parent_indices(candidates).take(in_completions)
    rows: Rows = np.union1d(in_prompts.to_numpy(), owners.to_numpy()).astype(np.int64)
    if len(rows):
        names = table.column("group_id").take(rows).to_pylist()
        remedy = "serve the model with the tokenizer that belongs to it, or resize its embeddings"
        if len(rows) == len(table):
            raise UserError(
                f"every group has token ids that the model, which has {vocabulary}, does not know, such as group "
                f"{names[0]}: {remedy}",
                param="model",
            )
        log.warning(
            "groups are set aside: they have token ids that the model does not know",
            groups=names[:MAX_NAMED],
            count=len(names),
            token_ids_of_model=vocabulary,
            remedy=remedy,
        )
    return rows


def _check(table: pa.Table) -> None:
    rewards, logprobs = table.column("rewards").to_pylist(), table.column("logprobs").to_pylist()
    n, temperature = table.column("n").to_numpy(), table.column("temperature").to_numpy()
    prompt_lengths = pc.list_value_length(table.column("prompt_token_ids")).to_numpy()
    sizes = pc.list_value_length(table.column("candidates")).to_numpy()
    for wrong, why in (
        (n < 2, "has fewer than two candidates"),
        (sizes != n, "does not have as many candidates as its n says"),
        (~np.array([np.isfinite(some).all() for some in rewards]), "has a reward that is not finite"),
        (
            np.array([some != sorted(some) for some in rewards]),
            "has candidates that are not in the order of their rewards",
        ),
        (~np.array([np.isfinite(some).all() for some in logprobs]), "has a log-probability that is not finite"),
        (temperature <= 0, "was drawn greedily, so its candidates are not samples of the policy"),
        (prompt_lengths == 0, "has an empty prompt"),
    ):
        if wrong.any():
            group = table.column("group_id")[int(np.flatnonzero(wrong)[0])].as_py()
            raise UserError(
                f"{int(wrong.sum())} of {wrong.size} groups cannot be trained on: group {group} {why}; take a new "
                "snapshot from the pair log, which leaves such groups out"
            )
