"""Whether the database takes groups."""

import structlog

from bonbon.errors import StoreError

log = structlog.get_logger(__name__)


class Health:
    """What the last attempts to store groups have shown.

    `taken` counts those that succeeded; `failure` is what the last one failed by, None after one that succeeded.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.failure: StoreError | None = None

    @property
    def down(self) -> bool:
        """Whether the database took nothing when it was last asked."""
        return self.failure is not None

    def took(self) -> None:
        """Note that the database has taken groups."""
        self.taken += 1
        self.answered()

    def answered(self) -> None:
        """Note that the database has answered, which does not say whether it takes groups."""
        if self.failure is not None:
            log.info("the database takes groups again")
        self.failure = None

    def failed(self, error: StoreError, *, spool: bool) -> None:
        """Note that the database has taken none of the groups offered; `spool` says whether they wait there."""
        if self.failure is None or self.failure.why != error.why:
            log.error("the database takes no groups", reason=str(error), groups_wait_in_the_spool=spool)
        self.failure = _again(error)

    def raise_failure(self, kind: type[StoreError] = StoreError) -> None:
        """Raise what the last attempt failed by, if it was of this kind."""
        if isinstance(self.failure, kind):
            raise _again(self.failure)


def _again(error: StoreError) -> StoreError:
    """The same error without its traceback, which would hold what was to be stored and grow each time it is raised."""
    return type(error)(str(error), why=error.why)
