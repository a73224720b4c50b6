"""Takes a training snapshot: a file that holds exactly the groups a run is trained on."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select

from bonbon.errors import UserError
from bonbon.pairs.group_rows import prompt_document
from bonbon.pairs.reading.newest_reward import newest_reward_of
from bonbon.pairs.reading.reader import RewardKey, Tenants, trainable_tenants
from bonbon.pairs.reading.training_groups import TrainingGroup, training_groups
from bonbon.store.database import Database
from bonbon.store.tables import versions

GROUPS, RECORD = "groups.parquet", "snapshot.json"
CHUNK = 500

SCHEMA = pa.schema(
    [
        ("group_id", pa.string()),
        ("version", pa.string()),
        ("prompt_digest", pa.string()),
        ("prompt", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("candidates", pa.list_(pa.list_(pa.int32()))),
        ("rewards", pa.list_(pa.float64())),
        ("logprobs", pa.list_(pa.float64())),
        ("n", pa.int32()),
        ("temperature", pa.float64()),
        ("max_tokens", pa.int32()),
        ("stop", pa.list_(pa.string())),
        ("split", pa.string()),
    ]
)


class Split(StrEnum):
    """The purpose of a group: training, choosing between policies, or measuring the chosen one."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Fractions(NamedTuple):
    """The fractions of all conversations that are held out for tests and for validation."""

    test: float
    validation: float


def split_of(root_digest: str, fractions: Fractions) -> Split:
    """Returns the split of a conversation, by the digest of its beginning (`Prompt.root_digest`).

    The split depends on the digest alone, so every turn of a conversation stays in the same split in every round. Tests
    are taken from one end of the digests and validation from the other. A smaller fraction selects a subset of what a
    larger one selected, and never a conversation of the other split.
    """
    place = int(root_digest[:8], 16) / 2**32
    if place < fractions.test:
        return Split.TEST
    return Split.VALIDATION if place >= 1 - fractions.validation else Split.TRAIN


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The contents of a snapshot. `hash` is SHA-256 over versions, reward and groups in order: same hash, same data.

    `version` is the policy that training starts from, and `base` its base and reference policy; every group was drawn
    from one of the two. `base_digest` is the base's manifest digest ("" when the registry does not know the base).
    `train_groups`, `validation_groups` and `test_groups` add up to `groups`. `other_rewards` counts groups left out
    because another reward, or another version of it, scored them.
    """

    path: Path
    hash: str
    version: str
    base: str
    base_digest: str
    groups: int
    train_groups: int
    validation_groups: int
    test_groups: int
    ns: tuple[int, ...]
    temperatures: tuple[float, ...]
    reward_name: str
    reward_version: str
    first_group: str
    last_group: str
    other_rewards: int = 0

    @property
    def groups_file(self) -> Path:
        """The Parquet file with one row per group, candidates worst first."""
        return self.path / GROUPS


async def take_snapshot(
    database: Database,
    directory: Path,
    *,
    version: str,
    fractions: Fractions,
    after: str | None = None,
    reward: RewardKey | None = None,
    tenants: Tenants = None,
    progress: Callable[[int], None] | None = None,
) -> Snapshot:
    """Writes the groups drawn from `version` and its base (newer than the group `after`) to `directory`.

    The base's groups belong to every round, because win probabilities and KL divergences are relative to its draws.

    Args:
        fractions: Fractions of the conversations held out for tests and for validation.
        reward: Take only groups that this reward scored; by default the reward that scored last.
        tenants: Take only groups of these tenants; by default all groups must belong to one tenant.
        progress: Called with the number of groups taken so far.

    Raises:
        UserError: There are no groups to take, they belong to several tenants, or `directory` is not empty.
    """
    base, base_digest = await _base(database, version)
    samplers = tuple(dict.fromkeys((base, version)))
    if tenants is None:
        await _refuse_mixture(database, samplers, after)
    reward = reward or await newest_reward_of(database, samplers, after=after, tenants=tenants)
    if reward is None:
        raise UserError(
            f"the pair log has no group of version {version!r} that can be trained on; send requests first, "
            "and see `bonbon pairs stats` for what it has"
        )
    if directory.exists():
        raise UserError(f"{directory} exists; a snapshot is never overwritten, name another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    digest, taken, other = _Digest(version, reward), _Tally(), 0
    with TemporaryDirectory(dir=directory.parent, prefix=".snapshot-") as temporary:
        work = Path(temporary) / "work"
        work.mkdir()
        with pq.ParquetWriter(work / GROUPS, SCHEMA, compression="zstd") as writer:
            chunk: list[dict[str, Any]] = []
            for sampler in samplers:
                async for group in training_groups(database, version=sampler, after=after, tenants=tenants):
                    if group.reward != reward:
                        other += 1
                        continue
                    row = snapshot_row(group, split_of(group.prompt.root_digest, fractions))
                    digest.add(row)
                    taken.add(row)
                    chunk.append(row)
                    if len(chunk) == CHUNK:
                        writer.write_table(pa.Table.from_pylist(chunk, SCHEMA))
                        chunk.clear()
                        if progress is not None:
                            progress(taken.groups)
            if chunk:
                writer.write_table(pa.Table.from_pylist(chunk, SCHEMA))
        if progress is not None:
            progress(taken.groups)
        if taken.groups == 0:
            raise UserError(f"no group of version {version!r} was scored by {reward.name!r} {reward.version!r}")
        snapshot = Snapshot(
            path=directory,
            hash=digest.hex,
            version=version,
            base=base,
            base_digest=base_digest,
            reward_name=reward.name,
            reward_version=reward.version,
            other_rewards=other,
            **taken.totals,
        )
        record = asdict(snapshot)
        del record["path"]
        (work / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        os.rename(work, directory)
    return snapshot


def read_snapshot(directory: Path) -> Snapshot:
    """Reads the snapshot in `directory`. Raises UserError when there is none or its groups do not match its hash."""
    try:
        record = json.loads((directory / RECORD).read_text())
        record = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
        snapshot = Snapshot(path=directory, **record)
        digest, taken = _Digest(snapshot.version, RewardKey(snapshot.reward_name, snapshot.reward_version)), _Tally()
        for row in read_rows(snapshot):
            digest.add(row)
            taken.add(row)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
        raise UserError(f"{directory} is not a readable snapshot: {error}; take a new one") from error
    if digest.hex != snapshot.hash or any(getattr(snapshot, name) != total for name, total in taken.totals.items()):
        raise UserError(f"{directory / GROUPS} does not match {RECORD} (hash {snapshot.hash}); take a new snapshot")
    return snapshot


def read_rows(snapshot: Snapshot) -> Iterable[dict[str, Any]]:
    """Yields the rows of the Parquet file, in constant memory."""
    with pq.ParquetFile(snapshot.groups_file) as file:
        for batch in file.iter_batches(CHUNK):
            yield from batch.to_pylist()


class _Digest:
    """SHA-256 over sampler, reward and rows in order."""

    def __init__(self, version: str, reward: RewardKey) -> None:
        self._hash = sha256()
        self._line([version, *reward])

    def add(self, row: dict[str, Any]) -> None:
        self._line([row[name] for name in SCHEMA.names])

    def _line(self, values: list[Any]) -> None:
        self._hash.update(json.dumps(values).encode() + b"\n")

    @property
    def hex(self) -> str:
        return self._hash.hexdigest()


@dataclass(slots=True)
class _Tally:
    """Counts of the groups taken so far."""

    splits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Split, 0))
    first: str = ""
    last: str = ""
    ns: set[int] = field(default_factory=set)
    temperatures: set[float] = field(default_factory=set)

    @property
    def groups(self) -> int:
        return sum(self.splits.values())

    def add(self, row: dict[str, Any]) -> None:
        self.splits[row["split"]] += 1
        self.first = min(self.first or row["group_id"], row["group_id"])
        self.last = max(self.last, row["group_id"])
        self.ns.add(row["n"])
        self.temperatures.add(row["temperature"])

    @property
    def totals(self) -> dict[str, Any]:
        """Returns the snapshot's fields of the same names."""
        return {
            "groups": self.groups,
            **{f"{split}_groups": self.splits[split] for split in Split},
            "ns": tuple(sorted(self.ns)),
            "temperatures": tuple(sorted(self.temperatures)),
            "first_group": self.first,
            "last_group": self.last,
        }


def snapshot_row(group: TrainingGroup, split: Split) -> dict[str, Any]:
    """Returns the group as a row of `SCHEMA`."""
    row: dict[str, Any] = {item.name: getattr(group, item.name) for item in fields(group)}
    row["prompt"] = json.dumps(prompt_document(group.prompt), ensure_ascii=False)
    row["split"] = str(split)
    row["candidates"] = [list(tokens) for tokens in group.candidates]
    for name in ("prompt_token_ids", "rewards", "logprobs", "stop"):
        row[name] = list(row[name])
    return {name: row[name] for name in SCHEMA.names}


async def _refuse_mixture(database: Database, samplers: Iterable[str], after: str | None) -> None:
    found = sorted(
        {tenant for version in samplers for tenant in await trainable_tenants(database, version, after=after)}
    )
    if len(found) > 1:
        raise UserError(
            f"the groups to train on are of several tenants, {', '.join(map(repr, found))}; a version trained on them "
            "answers everybody, so name those that agree in train.tenants (BONBON_TRAIN__TENANTS)",
            param="train.tenants",
        )


async def _base(database: Database, version: str) -> tuple[str, str]:
    """Returns name and manifest digest of the base of `version`, or `version` and "" when no base is registered."""
    name = select(versions.c.base).where(versions.c.name == version).scalar_subquery()
    query = select(versions.c.name, versions.c.digest).where(versions.c.name == name)
    async with database.read() as connection:
        row = (await connection.execute(query)).one_or_none()
    return (version, "") if row is None else (row.name, row.digest)
