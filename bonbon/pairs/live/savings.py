"""Counts what answering with a distilled version saves, over all gateways."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from bonbon.store.database import Database
from bonbon.store.tables import savings


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Numbers of tokens drawn for the answers of a distilled champion and for audits of them.

    `answer_tokens` were drawn for `answers` of a distilled champion. `audit_tokens` were drawn for `audits` of some of
    them; `best_of_n_tokens` of these are the audits' n draws of the base, which best-of-n would take for every answer.
    """

    answers: int = 0
    answer_tokens: int = 0
    audits: int = 0
    audit_tokens: int = 0
    best_of_n_tokens: int = 0

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(**{name: getattr(self, name) + getattr(other, name) for name in COUNTS})


COUNTS = tuple(TokenCounts.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Savings:
    """The savings of `version` as champion, compared with best-of-`n` of the base, since its first answer."""

    version: str
    n: int
    drawn: TokenCounts
    since: datetime
    updated: datetime

    @property
    def tokens_per_answer(self) -> float | None:
        """Tokens per answer, including the share of the audits; None before the first answer."""
        drawn = self.drawn
        return (drawn.answer_tokens + drawn.audit_tokens) / drawn.answers if drawn.answers else None

    @property
    def best_of_n_tokens_per_answer(self) -> float | None:
        """Tokens per answer of best-of-n of the base, measured in audits; None before the first audit."""
        return self.drawn.best_of_n_tokens / self.drawn.audits if self.drawn.audits else None

    @property
    def saved_share(self) -> float | None:
        """The share of best-of-n's tokens that is saved; None while either figure is unknown."""
        ours, theirs = self.tokens_per_answer, self.best_of_n_tokens_per_answer
        return 1 - ours / theirs if ours is not None and theirs else None

    @property
    def saved_tokens(self) -> int | None:
        """Total number of tokens saved."""
        ours, theirs = self.tokens_per_answer, self.best_of_n_tokens_per_answer
        return round(self.drawn.answers * (theirs - ours)) if ours is not None and theirs is not None else None


async def add_savings(database: Database, version: str, n: int, drawn: TokenCounts) -> Savings:
    """Adds one gateway's counts since its last call and returns the total of all gateways. Raises StoreError."""
    now = datetime.now(UTC)
    this = (savings.c.version == version) & (savings.c.n == n)
    new = dict.fromkeys(COUNTS, 0) | {"version": version, "n": n, "since": now, "updated": now}
    added = {name: savings.c[name] + getattr(drawn, name) for name in COUNTS}
    async with database.write() as connection:
        await connection.execute(database.insert_new(savings).values(**new))
        await connection.execute(savings.update().where(this).values(**added, updated=now))
        row = (await connection.execute(select(savings).where(this))).mappings().one()
    return _savings(row)


async def find_savings(database: Database, version: str, n: int) -> Savings | None:
    """Returns the savings of `version` against best-of-`n`, or None before its first answer as champion. Raises
    StoreError.
    """
    query = select(savings).where(savings.c.version == version, savings.c.n == n)
    async with database.read() as connection:
        row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else _savings(row)


async def read_savings(database: Database) -> list[Savings]:
    """Returns the savings of every version that answered as champion, most recently counted first. Raises
    StoreError."""
    async with database.read() as connection:
        rows = (await connection.execute(select(savings).order_by(savings.c.updated.desc()))).mappings().all()
    return [_savings(row) for row in rows]


def _savings(row: Mapping[Any, Any]) -> Savings:
    drawn = TokenCounts(**{name: row[name] for name in COUNTS})
    return Savings(row["version"], row["n"], drawn, row["since"], row["updated"])
