"""The database's tables: the pair log, the model registry and the API keys."""

import sys
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    or_,
)

from bonbon.store.storable_text import NAME_LENGTH, REASON_LENGTH, clean_document, clean_name, clean_text


class TokenIds(TypeDecorator[tuple[int, ...]]):
    """Token ids as little-endian 32-bit integers, which take a third of JSON's size."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Sequence[int] | None, dialect: Dialect) -> bytes | None:
        return None if value is None else _little_endian(array("i", value)).tobytes()

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[int, ...] | None:
        if value is None:
            return None
        ids = array("i")
        ids.frombytes(value)
        return tuple(_little_endian(ids))


def _little_endian(ids: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


class SafeText(TypeDecorator[str]):
    """Text cleaned by `clean_text`. Token ids keep the exact candidate.

    Args:
        max_length: The most characters, as in `clean_name`; PostgreSQL limits the size of index keys.
    """

    impl = Text
    cache_ok = True

    def __init__(self, max_length: int | None = None) -> None:
        super().__init__()
        self.max_length = max_length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return clean_text(value) if self.max_length is None else clean_name(value, self.max_length)


class Name(TypeDecorator[str]):
    """A name normalised by `clean_name`, for columns that are compared and counted."""

    impl = String(NAME_LENGTH)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean_name(value)


class Id(TypeDecorator[str]):
    """An id that bonbon has generated. A client or a command may look up any text, which then matches nothing."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean_text(value)


class Document(TypeDecorator[Any]):
    """JSON cleaned by `clean_document`."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return clean_document(value)


class Timestamp(TypeDecorator[datetime]):
    """A time with a time zone, stored in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

groups = Table(
    "groups",
    metadata,
    Column("id", Id, primary_key=True),
    Column("time", Timestamp, nullable=False, index=True),
    Column("origin", String(16), nullable=False),
    Column("tenant", SafeText, nullable=False),
    Column("end_user", SafeText(512), nullable=False),
    Column("request_id", SafeText(512), nullable=False),
    Column("metadata", Document, nullable=False),
    Column("prompt", Document, nullable=False),
    Column("prompt_digest", String(64), nullable=False),
    Column("prompt_token_ids", TokenIds, nullable=False),
    Column("version", Name, nullable=False),
    Column("temperature", Float, nullable=False),
    Column("top_p", Float, nullable=False),
    Column("top_k", Integer, nullable=False),
    Column("max_tokens", Integer, nullable=False),
    Column("stop", Document, nullable=False),
    Column("seed", BigInteger),
    Column("response_format", SafeText),
    Column("other_sampling", Document),
    Column("n", Integer, nullable=False),
    Column("reward_name", Name, nullable=False),
    Column("reward_version", Name, nullable=False),
    Column("degraded", SafeText(REASON_LENGTH)),
    Column("unclean", String(16)),
    Column("idempotency", String(64)),
    Column("fingerprint", String(64)),
)
# Time-ordered ids keep these indexes in append order. The trainable groups of one version are one range of the first
# index, which also serves queries for clean groups only.
_TRAINABLE = or_(groups.c.unclean.is_(None), groups.c.unclean == "tied")
Index(
    "ix_groups_trainable",
    groups.c.version,
    groups.c.id,
    sqlite_where=_TRAINABLE,
    postgresql_where=_TRAINABLE,
)
Index("ix_groups_end_user", groups.c.end_user)
Index("ix_groups_request_id", groups.c.request_id)
Index(
    "ix_groups_idempotency",
    groups.c.idempotency,
    unique=True,
    sqlite_where=groups.c.idempotency.is_not(None),
    postgresql_where=groups.c.idempotency.is_not(None),
)

candidates = Table(
    "candidates",
    metadata,
    Column("group_id", ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("text", SafeText, nullable=False),
    Column("token_ids", TokenIds, nullable=False),
    Column("logprob", Float(53), nullable=False),
    Column("finish_reason", String(16), nullable=False),
    Column("reward", Float(53)),
    Column("rank", Integer),
    Column("win_probability", Float(53)),
    Column("served", Boolean, nullable=False),
)

# A group's scores from before another reward scored it again: see bonbon/pairs/rescoring/earlier_scores.py.
earlier_scores = Table(
    "earlier_scores",
    metadata,
    Column("id", Id, primary_key=True),
    Column("group_id", ForeignKey("groups.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("version", Name, nullable=False),
    Column("replaced", Timestamp, nullable=False),
    Column("reward_name", Name, nullable=False),
    Column("reward_version", Name, nullable=False),
    Column("degraded", SafeText(REASON_LENGTH)),
    Column("unclean", String(16)),
    Column("scores", Document, nullable=False),
)
# The group of a version that was scored again last is the end of a range of this index.
Index("ix_earlier_scores_version", earlier_scores.c.version, earlier_scores.c.id)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", Id, primary_key=True),
    Column("group_id", ForeignKey("groups.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("time", Timestamp, nullable=False),
    Column("version", Name, nullable=False),
    Column("opponent", Name, nullable=False),
    Column("reward_name", Name, nullable=False),
    Column("reward_version", Name, nullable=False),
    Column("reward", Float(53), nullable=False),
    Column("opponent_reward", Float(53), nullable=False),
    Column("k", Integer, nullable=False, server_default="1"),
)

# Only counts, so that they outlive the groups they came from: see bonbon/pairs/live/win_rates.py.
win_rates = Table(
    "win_rates",
    metadata,
    Column("version", Name, primary_key=True),
    Column("opponent", Name, primary_key=True),
    Column("reward_name", Name, primary_key=True),
    Column("reward_version", Name, primary_key=True),
    Column("k", Integer, primary_key=True, autoincrement=False, server_default="1"),
    Column("wins", Integer, nullable=False),
    Column("ties", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("sequence", Document, nullable=False),
    Column("updated", Timestamp, nullable=False),
)

# Tokens that distilled champions drew, and tokens that best-of-n of the base would have drawn: see
# bonbon/pairs/live/savings.py.
savings = Table(
    "savings",
    metadata,
    Column("version", Name, primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("answers", BigInteger, nullable=False),
    Column("answer_tokens", BigInteger, nullable=False),
    Column("audits", BigInteger, nullable=False),
    Column("audit_tokens", BigInteger, nullable=False),
    Column("best_of_n_tokens", BigInteger, nullable=False),
    Column("since", Timestamp, nullable=False),
    Column("updated", Timestamp, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", Id, primary_key=True),
    Column("group_id", ForeignKey("groups.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("time", Timestamp, nullable=False),
    Column("score", Float(53)),
    Column("chosen", Integer),
    Column("comment", SafeText),
    Column("end_user", SafeText, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("name", Name, primary_key=True),
    Column("base", Name, nullable=False),
    Column("parent", Name),
    Column("kind", String(16), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("directory", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", Timestamp, nullable=False),
    Column("training", Document, nullable=False),
    Column("evaluation", Document, nullable=False),
    Column("verdict", Document),
    Column("raised_k", Integer),
)

# The last number given to a version of each base. It only grows, so no name is ever given twice.
version_numbers = Table(
    "version_numbers",
    metadata,
    Column("base", Name, primary_key=True),
    Column("last", Integer, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("alias", String(32), primary_key=True),
    Column("version", Name, nullable=False),
    Column("moved", Timestamp, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True),
    Column("time", Timestamp, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("version", Name, nullable=False),
    Column("actor", SafeText, nullable=False),
    Column("detail", Document, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", Name, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires", Timestamp, nullable=False),
    Column("seconds", Float(53)),
)

# The progress of each round of training, as last reported by its trainer.
rounds = Table(
    "rounds",
    metadata,
    Column("id", Id, primary_key=True),
    Column("run", SafeText, nullable=False),
    Column("sampler", Name, nullable=False),
    Column("stage", String(16), nullable=False),
    Column("epoch", Float(53), nullable=False),
    Column("epochs", Float(53), nullable=False),
    Column("curve", Document, nullable=False),
    Column("version", Name),
    Column("outcome", SafeText),
    Column("started", Timestamp, nullable=False, index=True),
    Column("updated", Timestamp, nullable=False),
)

# SHA-256 digests of API keys; a key itself is never stored.
keys = Table(
    "keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", SafeText, nullable=False),
    Column("tenant", SafeText, nullable=False),
    Column("scopes", Document, nullable=False),
    Column("digest", String(64), nullable=False, unique=True, index=True),
    Column("created", Timestamp, nullable=False),
    Column("expires", Timestamp),
    Column("revoked", Timestamp),
)

# Conditions of past `purge` calls; user names and request ids as SHA-256 digests.
erasures = Table(
    "erasures",
    metadata,
    Column("id", Id, primary_key=True),
    Column("time", Timestamp, nullable=False, index=True),
    Column("older_than", Timestamp),
    Column("user_digest", String(64)),
    Column("request_digest", String(64)),
    Column("tenant", SafeText),
)
