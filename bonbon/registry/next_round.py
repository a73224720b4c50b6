"""Decides when the next round of training starts: when there are enough new groups to expect fewer draws from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bonbon.pairs.reading.newest_reward import newest_reward
from bonbon.pairs.reading.reader import RewardKey, count_clean
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import Version, VersionState
from bonbon.settings import Settings

MAX_COUNTED = 50_000
"""The most groups that are counted for the next round unless it needs more, because every metrics scrape counts
them."""


@dataclass(frozen=True, slots=True)
class NextRound:
    """The state of the next round, which would start from `champion`.

    `groups` is the number of the champion's clean groups that no round by the newest reward was trained on yet, counted
    up to the larger of `MAX_COUNTED` and `needed`. `needed` is how many there must be, or None when no number of
    groups starts a round. `refused` is how many groups the newest round from this champion was trained on, if the gate
    refused it.
    """

    champion: str
    groups: int
    needed: int | None
    refused: int | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a trainer that checks now starts the round."""
        return self.needed is not None and self.groups >= self.needed

    @property
    def waits_for(self) -> str:
        """A sentence that says what the round waits for."""
        if self.needed is None:
            return (
                f"No round starts automatically: {self.champion} answers with one draw, and fewer are not possible. "
                "`bonbon loop --now` starts one."
            )
        if self.is_ready:
            return "There are enough groups for the next round: it starts at the trainer's next check."
        left = self.needed - self.groups
        why = f", because the last round learned too little from {self.refused}" if self.refused is not None else ""
        return (
            f"The next round waits for {left} more clean {'group' if left == 1 else 'groups'} of {self.champion} "
            f"({self.groups} of {self.needed}{why})."
        )


async def next_round(registry: Registry, champion: Version, settings: Settings) -> NextRound:
    """Returns what the next round waits for.

    A round is worth its cost when it is expected to lower the number of draws per answer. No round starts while one
    draw answers, and after a round that the gate refused, the next one waits for twice as many groups.

    Only rounds by the newest reward count as having trained on a group, because training by another reward says nothing
    of it. Groups that another reward scored are counted if the round would score them again, which `train.rescore`
    decides.
    """
    tenants = settings.train.tenants
    reward = await newest_reward(registry.database, champion.name, tenants=tenants)
    started = [
        version
        for version in await registry.list()
        if started_from(version.training) == champion.name and _learnt_by(version.training, reward)
    ]
    needed, refused = None, None
    if champion.parent is None or champion.k > 1 or await registry.fell_back(champion.name):
        if started and started[-1].state is VersionState.REFUSED:
            refused = int(started[-1].training.get("groups", 0))
        needed = max(settings.loop.min_groups, refused or 0)
    groups = await count_clean(
        registry.database,
        champion.name,
        after=max((version.training["last_group"] for version in started), default=None),
        tenants=tenants,
        reward=None if settings.train.rescore else reward,
        limit=max(needed or 0, MAX_COUNTED),
    )
    return NextRound(champion.name, groups, needed, refused)


def started_from(training: Mapping[str, Any]) -> str | None:
    """Returns the version that a training started from; older releases recorded it as the sampler."""
    start: str | None = training.get("start", training.get("sampler"))
    return start


def _learnt_by(training: Mapping[str, Any], reward: RewardKey | None) -> bool:
    """Returns whether a training used `reward`; True when either of the two is unknown."""
    learnt = training.get("reward")
    return learnt is None or reward is None or (learnt["name"], learnt["version"]) == reward
