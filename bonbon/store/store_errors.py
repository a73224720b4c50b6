"""What the database's drivers raise, as errors that callers handle."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from bonbon.errors import StoreError, StoreUnavailable

LIMIT_EXCEEDED = "54"
"""PostgreSQL's class of errors for a row that is too large: about the row, although its driver calls it operational."""


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise StoreError for what the database's driver raises in the block."""
    try:
        yield
    except SQLAlchemyError as error:
        raise _store_error(error) from error


def _store_error(error: SQLAlchemyError) -> StoreError:
    reason: Any = error.orig if isinstance(error, DBAPIError) else error
    diagnosis = getattr(reason, "diag", None)
    # Of PostgreSQL's messages only the first part: the others show what is in a row.
    said = getattr(diagnosis, "message_primary", None) or (str(reason).splitlines() or [""])[0]
    kind = StoreUnavailable if _is_outage(error, getattr(reason, "sqlstate", None)) else StoreError
    return kind(f"the database failed: {said}", why=type(reason).__name__)


def _is_outage(error: SQLAlchemyError, state: str | None) -> bool:
    """Whether `error` says that the database is away, locked or full, rather than something about what it was asked."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, PoolTimeout) or (
        isinstance(error, OperationalError) and not (state or "").startswith(LIMIT_EXCEEDED)
    )
