"""Tracks whether the database accepts groups."""

import structlog

from bonbon.errors import StoreError

log = structlog.get_logger(__name__)


class Health:
    """The results of the last attempts to store groups.

    `taken` counts successful attempts. `failure` is the error of the last attempt, None when it succeeded.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.failure: StoreError | None = None

    @property
    def down(self) -> bool:
        """Whether the last attempt failed."""
        return self.failure is not None

    def took(self) -> None:
        """Records that the database stored groups."""
        self.taken += 1
        self.answered()

    def answered(self) -> None:
        """Records that the database answered, which does not mean that it accepts groups."""
        if self.failure is not None:
            log.info("the database accepts groups again")
        self.failure = None

    def failed(self, error: StoreError, *, spool: bool) -> None:
        """Records that the database stored none of the offered groups. `spool` is whether they wait in the spool."""
        if self.failure is None or self.failure.why != error.why:
            log.error("the database accepts no groups", reason=str(error), groups_wait_in_the_spool=spool)
        self.failure = _again(error)

    def raise_failure(self, kind: type[StoreError] = StoreError) -> None:
        """Raises the error of the last attempt, if it is of this kind."""
        if isinstance(self.failure, kind):
            raise _again(self.failure)


def _again(error: StoreError) -> StoreError:
    """Returns the same error without its traceback, which would hold the groups and grow with each raise."""
    return type(error)(str(error), why=error.why)
