"""Passes an error from one process of a run to another, as JSON."""

from dataclasses import dataclass
from typing import Self

from bonbon.errors import BonbonError, EngineError, RewardError, UserError

KINDS = {kind.__name__: kind for kind in (UserError, EngineError, RewardError)}


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that ended a training or its draws. `kind` is the name of its class, which is one of `KINDS` or any
    other.
    """

    message: str
    kind: str
    param: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Self:
        kind = next((name for name, known in KINDS.items() if isinstance(error, known)), "BonbonError")
        message = str(error) if isinstance(error, BonbonError) else f"{type(error).__name__}: {error}"
        return cls(message, kind, getattr(error, "param", None))

    def error(self) -> BonbonError:
        """Returns the error as an instance of its own class."""
        if self.kind == "UserError":
            return UserError(self.message, param=self.param)
        return KINDS.get(self.kind, BonbonError)(self.message)
