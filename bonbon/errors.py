"""The errors that callers are expected to handle."""

from collections.abc import Mapping

HOW_TO_START = "await {}.start() first, or use `async with BestOfN(engine, reward) as best_of_n`, which starts both"
"""What a program has to do that uses engine or reward before they are started."""


class BonbonError(Exception):
    """Base class of every error that bonbon raises on purpose."""


class UserError(BonbonError):
    """Raised for a mistake that the user can correct.

    The message names the value and the remedy, and is shown to the user unchanged.

    Args:
        message: What is wrong, and what to do about it.
        param: The field or setting at fault, if there is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(UserError):
    """Raised when the prompt and the requested tokens do not fit into the model's context."""


class UnknownVersion(UserError):
    """Raised when no version or alias of this name is served."""


class RewardError(BonbonError):
    """Raised when the reward could not score. `reason` names the cause in one word."""

    reason = "failed"


class RewardLate(RewardError):
    """Raised when the reward does not answer before its deadline."""

    reason = "late"


class RewardInvalid(RewardError):
    """Raised when the reward does not return exactly one finite number per text."""

    reason = "invalid"


class RewardNotStarted(RewardError):
    """The reward was asked for a score before it was started: a mistake of the program, which degrades no group."""

    def __init__(self, what: str = "the reward") -> None:
        super().__init__(f"{what} is not started: {HOW_TO_START.format('reward')}")


class EngineError(BonbonError):
    """Raised when the engine fails while sampling; the request may be retried."""


class Overloaded(BonbonError):
    """Raised when there is no capacity for a request at the moment; it may be retried."""


class ClientTooSlow(BonbonError):
    """Raised when a client does not read its answer, and other requests need the memory that the answer occupies."""


class RateLimited(BonbonError):
    """Raised when a tenant has exceeded its rate limit.

    Args:
        headers: The response headers that report how much is left and when to retry.
    """

    def __init__(self, message: str, *, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.headers = headers


class Conflict(BonbonError):
    """Raised when another process has changed the record first (compare-and-swap failed) or holds the lease."""


class StoreError(BonbonError):
    """Raised when the database cannot be read or written; nothing was stored.

    Args:
        message: What failed, for the log.
        why: The cause in a word or two that may be shown to anybody: it names no host, no file and no stored data.
    """

    def __init__(self, message: str, *, why: str = "") -> None:
        super().__init__(message)
        self.why = why or type(self).__name__


class StoreUnavailable(StoreError):
    """Raised when the database cannot be reached or does not answer in time, so that other calls would fail, too."""
