"""Converts errors of the database's drivers to errors that callers handle."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from bonbon.errors import StoreError, StoreUnavailable

LIMIT_EXCEEDED = "54"
"""PostgreSQL's error class for a row that is too large. It concerns the row, although its driver calls it
operational."""


@contextmanager
def store_errors() -> Iterator[None]:
    """Raises StoreError for every error of the database's driver in the block."""
    try:
        yield
    except SQLAlchemyError as error:
        raise _store_error(error) from error


def _store_error(error: SQLAlchemyError) -> StoreError:
    reason: Any = error.orig if isinstance(error, DBAPIError) else error
    diagnosis = getattr(reason, "diag", None)
    # Only the first part of PostgreSQL's message, because the rest quotes a row's contents.
    said = getattr(diagnosis, "message_primary", None) or (str(reason).splitlines() or [""])[0]
    kind = StoreUnavailable if _is_outage(error, getattr(reason, "sqlstate", None)) else StoreError
    return kind(f"the database failed: {said}", why=type(reason).__name__)


def _is_outage(error: SQLAlchemyError, state: str | None) -> bool:
    """Returns whether `error` means that the database is unreachable, locked or full, rather than that a request is
    invalid.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, PoolTimeout) or (
        isinstance(error, OperationalError) and not (state or "").startswith(LIMIT_EXCEEDED)
    )
