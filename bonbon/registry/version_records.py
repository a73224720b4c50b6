"""The records that the registry stores."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from bonbon.engines.engine import VersionFiles, VersionKind

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
BEST_OF_N = "best_of_n"
"""The alias of the champion while it answers with best-of-n, even if it is distilled; see `Registry.fall_back`."""


class VersionState(StrEnum):
    """The states of a version: registered, then approved or refused, promoted, retired. A retired one can be promoted
    again.
    """

    REGISTERED = "registered"
    APPROVED = "approved"
    REFUSED = "refused"
    PROMOTED = "promoted"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the policy.

    `digest` is the SHA-256 of its manifest. `training` records what it was made from (snapshot, settings), `evaluation`
    the measurements and `verdict` the gate's decision. `raised_k` is the value to which the live win rate has raised
    `k`; see `Registry.raise_k`.
    """

    name: str
    base: str
    parent: str | None
    kind: VersionKind
    digest: str
    directory: Path
    state: VersionState
    created: datetime
    training: dict[str, Any]
    evaluation: dict[str, Any]
    verdict: dict[str, Any] | None
    raised_k: int | None = None

    @property
    def files(self) -> VersionFiles:
        """The files that an engine loads."""
        return VersionFiles(self.name, self.kind, self.directory)

    @property
    def k(self) -> int:
        """The number of draws whose best is the answer: `raised_k`, or else the verdict's, or else 1."""
        return self.raised_k or int((self.verdict or {}).get("k") or 1)


class Target(NamedTuple):
    """The target of an alias: a version, its `k`, and the current digest of its files ("" without files)."""

    version: str
    digest: str
    k: int = 1


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the audit trail."""

    time: datetime
    kind: str
    version: str
    actor: str
    detail: dict[str, Any]
