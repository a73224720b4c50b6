"""A training snapshot: exactly which groups a run is trained on, in a file of its own."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select

from bonbon.database import Database
from bonbon.errors import UserError
from bonbon.pairs.clean import CleanGroup, clean_groups
from bonbon.pairs.reader import RewardKey, Tenants, clean_tenants, newest_reward
from bonbon.pairs.rows import prompt_document
from bonbon.tables import versions

GROUPS, RECORD = "groups.parquet", "snapshot.json"
CHUNK = 500

SCHEMA = pa.schema(
    [
        ("group_id", pa.string()),
        ("prompt_digest", pa.string()),
        ("prompt", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("candidates", pa.list_(pa.list_(pa.int32()))),
        ("rewards", pa.list_(pa.float64())),
        ("logprobs", pa.list_(pa.float64())),
        ("n", pa.int32()),
        ("temperature", pa.float64()),
        ("max_tokens", pa.int32()),
        ("held_out", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot holds. `hash` is SHA-256 over sampler, reward and groups in order: same hash, same training data.

    `version` is the one sampler of every group, `base_digest` the manifest digest of the base it was made from ("" when
    the registry does not know it). `other_rewards` counts clean groups left out because another reward, or another
    version of it, scored them.
    """

    path: Path
    hash: str
    version: str
    base_digest: str
    groups: int
    held_out_groups: int
    ns: tuple[int, ...]
    temperatures: tuple[float, ...]
    reward_name: str
    reward_version: str
    first_group: str
    last_group: str
    other_rewards: int = 0

    @property
    def groups_file(self) -> Path:
        """The Parquet file: a row a group, its candidates worst first."""
        return self.path / GROUPS


def is_held_out(prompt_digest: str, fraction: float) -> bool:
    """Whether a prompt is kept from training: a fixed share of all prompts, the same ones every time."""
    return int(prompt_digest[:8], 16) / 2**32 < fraction


async def take_snapshot(
    database: Database,
    directory: Path,
    *,
    version: str,
    held_out_fraction: float,
    after: str | None = None,
    reward: RewardKey | None = None,
    tenants: Tenants = None,
    progress: Callable[[int], None] | None = None,
) -> Snapshot:
    """Write `version`'s clean groups (newer than the group `after`) to `directory`.

    Args:
        reward: take only groups that this reward scored; by default the one that scored the newest group.
        tenants: take only groups of these; by default there must be one tenant only, whoever it is.
        progress: called with the number of groups taken so far.

    Raises:
        UserError: there is no clean group to take, they are of several tenants, or `directory` holds something already.
    """
    if tenants is None:
        await _refuse_mixture(database, version, after)
    reward = reward or await newest_reward(database, version, after=after, tenants=tenants)
    if reward is None:
        raise UserError(
            f"the pair log has no clean group of version {version!r}; send requests first, "
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
            async for group in clean_groups(database, version=version, after=after, tenants=tenants):
                if group.reward != reward:
                    other += 1
                    continue
                row = _row(group, held_out_fraction)
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
            raise UserError(f"no clean group of version {version!r} was scored by {reward.name!r} {reward.version!r}")
        snapshot = Snapshot(
            path=directory,
            hash=digest.hex,
            version=version,
            base_digest=await _base_digest(database, version),
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
    """The snapshot in `directory`. Raises UserError when it is not one, or its pairs are not those its hash names."""
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
        raise UserError(f"{directory / GROUPS} is not what {RECORD} says (hash {snapshot.hash}); take a new snapshot")
    return snapshot


def read_rows(snapshot: Snapshot) -> Iterable[dict[str, Any]]:
    """The rows of the Parquet file, in constant memory."""
    with pq.ParquetFile(snapshot.groups_file) as file:
        for batch in file.iter_batches(CHUNK):
            yield from batch.to_pylist()


class _Digest:
    """SHA-256 over sampler, reward, and rows in order."""

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
    """What has been taken so far."""

    groups: int = 0
    held_out: int = 0
    first: str = ""
    last: str = ""
    ns: set[int] = field(default_factory=set)
    temperatures: set[float] = field(default_factory=set)

    def add(self, row: dict[str, Any]) -> None:
        self.groups += 1
        self.held_out += row["held_out"]
        self.first = self.first or row["group_id"]
        self.last = row["group_id"]
        self.ns.add(row["n"])
        self.temperatures.add(row["temperature"])

    @property
    def totals(self) -> dict[str, Any]:
        """The snapshot's fields of these names."""
        return {
            "groups": self.groups,
            "held_out_groups": self.held_out,
            "ns": tuple(sorted(self.ns)),
            "temperatures": tuple(sorted(self.temperatures)),
            "first_group": self.first,
            "last_group": self.last,
        }


def _row(group: CleanGroup, held_out_fraction: float) -> dict[str, Any]:
    row: dict[str, Any] = {item.name: getattr(group, item.name) for item in fields(group)}
    row["prompt"] = json.dumps(prompt_document(group.prompt), ensure_ascii=False)
    row["held_out"] = is_held_out(group.prompt_digest, held_out_fraction)
    row["candidates"] = [list(tokens) for tokens in group.candidates]
    for name in ("prompt_token_ids", "rewards", "logprobs"):
        row[name] = list(row[name])
    return {name: row[name] for name in SCHEMA.names}


async def _refuse_mixture(database: Database, version: str, after: str | None) -> None:
    found = await clean_tenants(database, version, after=after)
    if len(found) > 1:
        raise UserError(
            f"the groups of version {version!r} are of several tenants, {', '.join(map(repr, found))}; what is trained "
            "on them answers everybody, so name those that agree in train.tenants (BONBON_TRAIN__TENANTS)",
            param="train.tenants",
        )


async def _base_digest(database: Database, version: str) -> str:
    base = select(versions.c.base).where(versions.c.name == version).scalar_subquery()
    async with database.read() as connection:
        query = select(versions.c.digest).where(versions.c.name == base)
        return (await connection.execute(query)).scalar_one_or_none() or ""
