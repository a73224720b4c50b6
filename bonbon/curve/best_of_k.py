"""Estimates best-of-k for every k up to the logged n from the pair log, without new draws."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonbon.concurrency.gather import gather_or_cancel
from bonbon.curve.group_selection import Selection
from bonbon.errors import UserError
from bonbon.pairs.reading.scored_groups import Kind, ScoredGroup, scored_groups
from bonbon.rewards.reward import Reward
from bonbon.rewards.scoring import OFFLINE_DEADLINE, score_texts
from bonbon.store.database import Database
from bonbon.theory import Estimate, best_of_k_means, best_of_k_win_rates, best_of_n_kl, clustered_ratio

SHARE = 0.05
BUCKETS = 4096
JUDGED_TOGETHER = 16

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Point:
    """The estimates for one k, each with its 95 % interval.

    `gain` is the expected reward that the k-th draw adds (None at k = 1). `pays` is that gain minus a share (`SHARE` by
    default) of everything that the k - 1 draws before it gained (None below k = 3): where its interval is below 0, the
    k-th draw no longer pays. `win_rate` is against one draw, by the reward that selected. `judge_...` fields are by
    another reward, for the same selected candidates. `kl` is an upper bound of KL(best-of-k || sampler), in nats. Win
    rates need a draw outside the k, so there is none at k = n.
    """

    k: int
    reward: Estimate
    gain: Estimate | None
    pays: Estimate | None
    win_rate: Estimate | None
    judge_reward: Estimate | None
    judge_win_rate: Estimate | None
    kl: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Best-of-k for k = 1 to `kind.n`, from `groups` groups.

    `smaller` counts groups of the same version and reward with fewer candidates, which are left out. `tied` is the
    share of pairs of candidates in a group with equal rewards: without ties, the win rate by the selecting reward is k
    / (k + 1) for any reward. `stops_at` is the first k after which another draw no longer pays, None when all of them
    pay.
    """

    kind: Kind
    groups: int
    smaller: int
    tied: float
    share: float
    judge: str | None
    judged: int
    points: tuple[Point, ...]
    stops_at: int | None

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types only."""
        reward = self.kind.reward._asdict()
        return asdict(self) | {"kind": {"version": self.kind.version, "reward": reward, "n": self.kind.n}}


async def make_curve(
    database: Database,
    selection: Selection,
    *,
    share: float = SHARE,
    judge: Reward | None = None,
    progress: Callable[[int], None] | None = None,
) -> Curve:
    """Estimates the curve in one pass over the selected groups, in constant memory.

    Args:
        share: A draw no longer pays when it surely adds less than this share of what the draws before it gained.
        judge: A started reward other than the selecting one, which scores the logged candidates.
        progress: Called with the number of groups read so far.

    Raises:
        UserError: All groups have the same prompt.
        RewardError: The judge failed to score.
    """
    kind = selection.kind
    tally = _Tally(kind.n, judged=judge is not None)
    logged = scored_groups(
        database,
        version=kind.version,
        reward=kind.reward,
        min_n=kind.n,
        after=selection.after,
        texts=judge is not None,
    )
    async for group, scores in _judged(logged, judge):
        tally.add(group, scores)
        if progress is not None:
            progress(tally.groups)
    points = tally.points(share)
    stops = (point.k - 1 for point in points if point.pays is not None and point.pays.high < 0)
    return Curve(
        kind=kind,
        groups=tally.groups,
        smaller=selection.smaller,
        tied=tally.tied / tally.pairs,
        share=share,
        judge=judge.name if judge else None,
        judged=tally.judged,
        points=points,
        stops_at=next(stops, None),
    )


async def _judged(
    groups: AsyncIterator[ScoredGroup], judge: Reward | None
) -> AsyncIterator[tuple[ScoredGroup, Sequence[float] | None]]:
    """Yields each group with the judge's scores. They are None without a judge and for prompts of token ids."""

    async def score(group: ScoredGroup) -> list[float] | None:
        if judge is None or group.prompt is None or group.prompt.token_ids is not None:
            return None
        return await score_texts(judge, group.prompt, group.texts, deadline=OFFLINE_DEADLINE)

    waiting: list[ScoredGroup] = []
    async for group in groups:
        waiting.append(group)
        if len(waiting) == JUDGED_TOGETHER:
            for one, scores in zip(waiting, await gather_or_cancel(map(score, waiting)), strict=True):
                yield one, scores
            waiting.clear()
    for one, scores in zip(waiting, await gather_or_cancel(map(score, waiting)), strict=True):
        yield one, scores


class _Sums:
    """Sums of vectors over groups, by bucket of prompts, in memory that does not grow with the log.

    A bucket holds all groups whose prompt digests fall into it and serves as a cluster. Prompts are independent and so
    are buckets. With fewer prompts than buckets, nearly every prompt has its own.
    """

    def __init__(self, size: int) -> None:
        self.sums: Array = np.zeros((BUCKETS, size))
        self.counts: Array = np.zeros(BUCKETS)

    @property
    def clusters(self) -> int:
        return int(np.count_nonzero(self.counts))

    def add(self, bucket: int, values: Array) -> None:
        self.sums[bucket] += values
        self.counts[bucket] += 1

    def mean(self, weights: Array) -> Estimate:
        """Returns the estimate of a linear combination of the vector's entries, over all groups."""
        used = self.counts > 0
        return clustered_ratio(self.sums[used] @ weights, self.counts[used], int(self.counts.sum()))


class _Tally:
    """Counts of the groups read so far."""

    def __init__(self, n: int, *, judged: bool) -> None:
        self.n = n
        self.groups = self.tied = self.pairs = 0
        self._rewards, self._wins = _Sums(n), _Sums(n - 1)
        self._judge = (_Sums(n), _Sums(n - 1)) if judged else None

    @property
    def judged(self) -> int:
        return int(self._judge[0].counts.sum()) if self._judge else 0

    def add(self, group: ScoredGroup, scores: Sequence[float] | None) -> None:
        bucket = int(group.prompt_digest[-8:], 16) % BUCKETS
        rewards = group.rewards
        _, equal = np.unique(rewards, return_counts=True)
        self.groups += 1
        self.tied += int((equal * (equal - 1)).sum()) // 2
        self.pairs += len(rewards) * (len(rewards) - 1) // 2
        self._add(self._rewards, self._wins, bucket, rewards)
        if scores is not None and self._judge is not None:
            self._add(*self._judge, bucket, scores)

    def _add(self, means: _Sums, wins: _Sums, bucket: int, values: Sequence[float]) -> None:
        means.add(bucket, best_of_k_means(values)[: self.n])
        wins.add(bucket, best_of_k_win_rates(values)[: self.n - 1])

    def points(self, share: float) -> tuple[Point, ...]:
        if self._rewards.clusters < 2:
            raise UserError(
                "all groups have the same prompt, so nothing can be estimated for other prompts: log more prompts"
            )
        return tuple(self._point(k, share) for k in range(1, self.n + 1))

    def _point(self, k: int, share: float) -> Point:
        unit = np.eye(self.n)
        step = unit[k - 1] - unit[k - 2] if k > 1 else None
        judge_reward, judge_wins = self._judge if self._judge and self._judge[0].clusters > 1 else (None, None)
        win = np.eye(self.n - 1)[k - 1] if k < self.n else None
        return Point(
            k=k,
            reward=self._rewards.mean(unit[k - 1]),
            gain=self._rewards.mean(step) if step is not None else None,
            pays=self._rewards.mean(step - share * (unit[k - 2] - unit[0])) if step is not None and k > 2 else None,
            win_rate=self._wins.mean(win) if win is not None else None,
            judge_reward=judge_reward.mean(unit[k - 1]) if judge_reward else None,
            judge_win_rate=judge_wins.mean(win) if judge_wins and win is not None else None,
            kl=best_of_n_kl(k),
        )
