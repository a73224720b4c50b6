"""The errors that callers are expected to handle."""

from collections.abc import Mapping

HOW_TO_START = "await {}.start() first, or use `async with BestOfN(engine, reward) as best_of_n`, which starts both"
"""What a program has to do that uses engine or reward before they are started."""


class BonbonError(Exception):
    """Base of every error raised on purpose."""


class UserError(BonbonError):
    """Something the user can mend. The message names the value and the remedy; it is shown as it is.

    Args:
        message: what is wrong and what to do about it.
        param: the field or setting at fault, when there is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(UserError):
    """The prompt, with the tokens asked for, does not fit the model's context."""


class UnknownVersion(UserError):
    """No such version or alias is served here."""


class RewardError(BonbonError):
    """The reward could not score. `reason` says in one word why."""

    reason = "failed"


class RewardLate(RewardError):
    """The reward had not answered when its time was over."""

    reason = "late"


class RewardInvalid(RewardError):
    """The reward answered something else than one finite number per text."""

    reason = "invalid"


class RewardNotStarted(RewardError):
    """The reward was asked for a score before it was started: a mistake of the program, which degrades no group."""

    def __init__(self, what: str = "the reward") -> None:
        super().__init__(f"{what} is not started: {HOW_TO_START.format('reward')}")


class EngineError(BonbonError):
    """The engine failed while drawing; the request may be retried."""


class Overloaded(BonbonError):
    """There is no capacity for the request now; it may be retried."""


class ClientTooSlow(BonbonError):
    """The client did not read its answer, and the memory that the answer took was needed for others."""


class RateLimited(BonbonError):
    """The tenant has asked for more than it may.

    Args:
        headers: what tells the client how much is left, and when to come back.
    """

    def __init__(self, message: str, *, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.headers = headers


class Conflict(BonbonError):
    """Somebody else moved the record first (compare-and-swap failed) or holds the lease."""


class StoreError(BonbonError):
    """The database could not be read or written; nothing was stored.

    Args:
        message: what failed, for the log.
        why: the same in a word or two, fit for everybody: it names no host, no file and nothing that was stored.
    """

    def __init__(self, message: str, *, why: str = "") -> None:
        super().__init__(message)
        self.why = why or type(self).__name__


class StoreUnavailable(StoreError):
    """The database cannot be reached, or did not answer in time: it would take nothing else now either."""
