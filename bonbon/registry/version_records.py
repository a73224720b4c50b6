"""What the registry stores."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from bonbon.engines.engine import VersionFiles, VersionKind

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
BEST_OF_N = "best_of_n"
"""Names the champion while it answers with best-of-n although it may be distilled: see `Registry.fall_back`."""


class VersionState(StrEnum):
    """registered -> approved or refused -> promoted -> retired; what was retired may be promoted again."""

    REGISTERED = "registered"
    APPROVED = "approved"
    REFUSED = "refused"
    PROMOTED = "promoted"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the policy.

    `digest` is the SHA-256 of its manifest; `training` is what it was made from (snapshot, settings), `evaluation` what
    was measured, `verdict` what the gate said. `raised_k` is what the live win rate has raised `k` to, see
    `Registry.raise_k`.
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
        """What an engine loads."""
        return VersionFiles(self.name, self.kind, self.directory)

    @property
    def k(self) -> int:
        """The version answers with the best of this many draws: `raised_k`, else what the verdict says, else 1."""
        return self.raised_k or int((self.verdict or {}).get("k") or 1)


class Target(NamedTuple):
    """What an alias names: a version, its `k`, and the digest that the registry has of its files now; "" for none."""

    version: str
    digest: str
    k: int = 1


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the audit trail."""

    time: datetime
    kind: str
    version: str
    actor: str
    detail: dict[str, Any]
