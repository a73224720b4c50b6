"""The records that the pair log stores."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256

from bonbon.engines.engine import FinishReason, Sampling
from bonbon.prompt import Prompt
from bonbon.store.storable_text import REASON_LENGTH, clean_name

TRAINING = "training"
"""The origin of groups that a training draws for itself."""


class Unclean(StrEnum):
    """Why a group is kept but never trained on."""

    SINGLE = "single"  # one draw only, so there is nothing to compare
    DEGRADED = "degraded"  # the reward failed, missed its deadline, or gave a score that is not finite
    TIED = "tied"  # the best candidate is not strictly above the worst
    SAMPLING = (
        "sampling"  # greedy, limits, penalties, a response format or forced calls change the policy's distribution
    )
    REWARD = "reward"  # its tenant has its own reward, which is not the one that versions learn
    REPEATED = "repeated"  # a retry whose first attempt may have been logged as well
    ABORTED = "aborted"  # an abort cut off a candidate, so there are not n complete draws


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate. Its `text` has tool calls written out (see `bonbon.tools.written`).

    `logprob` is the sum over `token_ids` under the sampler at the sampling temperature, in nats.

    `rank` is 1 for the worst and n for the best, with ties broken uniformly at random. `win_probability` is the
    expected probability of beating a fresh draw given the rank, rank / (n + 1), where tied candidates share the mean of
    their ranks.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprob: float
    finish_reason: FinishReason
    reward: float | None = None
    rank: int | None = None
    win_probability: float | None = None
    served: bool = False


def salt_of(tenant: str) -> str:
    """Returns the salt that separates a tenant's prompts in an engine's prefix cache; empty for the unnamed tenant."""
    return sha256(tenant.encode(errors="surrogatepass")).hexdigest() if tenant else ""


@dataclass(frozen=True, slots=True)
class Group:
    """The n scored candidates of one prompt, in the order they were drawn.

    `degraded` is the reason why the reward gave no ranking (the first candidate is then the answer), and `unclean` the
    reason why the group must not be trained on; both are None otherwise. `origin` is `request` for answered traffic,
    `audit` for background draws and `training` for draws of a training. `idempotency` identifies the request that the
    group answers; the log stores one group per key. `fingerprint` is the digest of that request's content.

    The names of version and reward, the reward's version and its failure reason are normalised by `clean_name`.
    """

    id: str
    time: datetime
    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    version: str
    sampling: Sampling
    reward_name: str
    reward_version: str
    candidates: tuple[Candidate, ...]
    degraded: str | None = None
    unclean: Unclean | None = None
    origin: str = "request"
    tenant: str = ""
    user: str = ""
    request_id: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    idempotency: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        _clean_names(self, "version", "reward_name", "reward_version")
        if self.degraded is not None:
            object.__setattr__(self, "degraded", clean_name(self.degraded, REASON_LENGTH))

    @property
    def n(self) -> int:
        return len(self.candidates)

    @property
    def drawn_tokens(self) -> int:
        """Number of tokens drawn for all candidates."""
        return sum(len(candidate.token_ids) for candidate in self.candidates)

    @property
    def salt(self) -> str:
        """The salt of the draws, see `DrawRequest`."""
        return salt_of(self.tenant)

    @property
    def served(self) -> tuple[Candidate, ...]:
        """The candidates that were returned to the client, best first."""
        return tuple(sorted((c for c in self.candidates if c.served), key=lambda c: -(c.rank or 0)))

    @property
    def best(self) -> Candidate:
        """The candidate of highest rank, or the first one without a ranking."""
        return max(self.candidates, key=lambda c: c.rank or 0)

    @property
    def worst(self) -> Candidate:
        """The candidate of lowest rank, or the first one without a ranking."""
        return min(self.candidates, key=lambda c: c.rank or 0)


def best_of(n: int) -> str:
    """Returns the name of best-of-n of the base as an opponent."""
    return f"best-of-{n}"


class Outcome(StrEnum):
    """The result of a comparison for the champion."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of one audit: the champion's answer to `group_id`'s prompt against `opponent`.

    The champion's answer is the best of `k` draws. `opponent` is the base, for one fresh draw of it, or `best_of(n)`.
    Names are normalised as a group's are.
    """

    group_id: str
    time: datetime
    version: str
    opponent: str
    reward_name: str
    reward_version: str
    reward: float
    opponent_reward: float
    k: int = 1

    def __post_init__(self) -> None:
        _clean_names(self, "version", "opponent", "reward_name", "reward_version")

    @property
    def outcome(self) -> Outcome:
        if self.reward == self.opponent_reward:
            return Outcome.TIE
        return Outcome.WIN if self.reward > self.opponent_reward else Outcome.LOSS


@dataclass(frozen=True, slots=True)
class Feedback:
    """A person's feedback on a group: a score, a chosen candidate, a comment, or several of them."""

    group_id: str
    time: datetime
    score: float | None = None
    chosen: int | None = None
    comment: str | None = None
    user: str = ""


def _clean_names(record: object, *fields: str) -> None:
    """Normalises names of a frozen record as the database does, so that both can be compared."""
    for name in fields:
        given = getattr(record, name)
        if (clean := clean_name(str(given))) != given:
            object.__setattr__(record, name, clean)
