"""What the pair log stores."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256

from bonbon.engines.engine import FinishReason, Sampling
from bonbon.prompt import Prompt
from bonbon.store.storable_text import REASON_LENGTH, clean_name

TRAINING = "training"
"""The origin of groups that a training has drawn for itself."""


class Unclean(StrEnum):
    """Why a group is kept but never trained on."""

    SINGLE = "single"  # one draw only: nothing to contrast
    DEGRADED = "degraded"  # the reward failed, was late, or scored something that is not finite
    TIED = "tied"  # best is not strictly above worst
    SAMPLING = "sampling"  # greedy, limits, penalties, a response format, forced calls: not the policy's distribution
    REWARD = "reward"  # its tenant has a reward of its own: not the one that versions learn
    REPEATED = "repeated"  # a retry whose first attempt may have been logged, too
    ABORTED = "aborted"  # a candidate was cut off by an abort: the draws are not n whole ones


@dataclass(frozen=True, slots=True)
class Candidate:
    """One draw. `text` has tool calls written out (see `bonbon.tools.written`).

    `logprob` is the sum over `token_ids` under the sampler at the sampling temperature, in nats.

    `rank` is 1 for the worst and n for the best, ties broken uniformly at random.
    `win_probability` is the expected chance to beat a fresh draw given the rank, rank / (n + 1), tied candidates
    sharing the mean of their ranks.
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
    """What keeps a tenant's prompts apart in an engine's cache; none for the tenant without a name."""
    return sha256(tenant.encode(errors="surrogatepass")).hexdigest() if tenant else ""


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt's n scored candidates, in the order they were drawn.

    `degraded` says why the reward gave no ranking (then the first candidate is the answer); `unclean` why the group
    must not be trained on, None when it is clean. `origin` is `request` for answered traffic, `audit` for background
    draws and `training` for what a training draws for itself. `idempotency` names the request it answers, and the log
    has one group of each name; `fingerprint` is the digest of what that request asked for.

    The names of version and reward, the reward's version, and what it says of its failure, are as `clean_name` makes
    them, whoever gave them.
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
        """How many tokens were drawn for all candidates."""
        return sum(len(candidate.token_ids) for candidate in self.candidates)

    @property
    def salt(self) -> str:
        """Of the draws, see `DrawRequest`."""
        return salt_of(self.tenant)

    @property
    def served(self) -> tuple[Candidate, ...]:
        """The candidates that were answered, best first."""
        return tuple(sorted((c for c in self.candidates if c.served), key=lambda c: -(c.rank or 0)))

    @property
    def best(self) -> Candidate:
        """The candidate of highest rank; the first one when there is no ranking."""
        return max(self.candidates, key=lambda c: c.rank or 0)

    @property
    def worst(self) -> Candidate:
        """The candidate of lowest rank; the first one when there is no ranking."""
        return min(self.candidates, key=lambda c: c.rank or 0)


def best_of(n: int) -> str:
    """What best-of-n of the base is called as an opponent."""
    return f"best-of-{n}"


class Outcome(StrEnum):
    """What a comparison showed, from the champion's side."""

    WIN = "win"
    TIE = "tie"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Comparison:
    """From one audit: the champion's answer to `group_id`'s prompt against `opponent`.

    The champion's answer is the best of `k` draws. `opponent` is the base, for one fresh draw of it, or `best_of(n)`.
    Names are as a group's.
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
    """A person's word on a group: a score, a chosen candidate, a comment, or several of them."""

    group_id: str
    time: datetime
    score: float | None = None
    chosen: int | None = None
    comment: str | None = None
    user: str = ""


def _clean_names(record: object, *fields: str) -> None:
    """Have a frozen record name what it names as the database does, so that both can be compared."""
    for name in fields:
        given = getattr(record, name)
        if (clean := clean_name(str(given))) != given:
            object.__setattr__(record, name, clean)
