"""When the next round of training begins by itself: when there is enough new to expect fewer draws from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bonbon.pairs.reading.newest_reward import newest_reward
from bonbon.pairs.reading.reader import RewardKey, count_clean
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import Version, VersionState
from bonbon.settings import Settings

MOST_COUNTED = 50_000
"""Groups at which the count for the next round stops, unless it needs more: every scrape of the metrics counts them."""


@dataclass(frozen=True, slots=True)
class NextRound:
    """What is known of the next round, which would start from `champion`.

    `groups` are the champion's clean groups that no round by the newest reward was trained on yet, counted up to
    `MOST_COUNTED` or `needed`, whichever is more. `needed` is how many there must be; None where no number of them
    begins a round. `refused` is how many groups the newest such round that started from the champion was trained on, if
    the gate refused it.
    """

    champion: str
    groups: int
    needed: int | None
    refused: int | None = None

    @property
    def is_due(self) -> bool:
        """Whether a trainer that looks now begins it."""
        return self.needed is not None and self.groups >= self.needed

    @property
    def waits_for(self) -> str:
        """The same as a sentence."""
        if self.needed is None:
            return (
                f"No round begins by itself: {self.champion} answers with one draw, and fewer are not possible. "
                "`bonbon loop --now` begins one."
            )
        if self.is_due:
            return "The next round is due: it begins when the trainer looks next."
        left = self.needed - self.groups
        why = f", because the last round learned too little from {self.refused}" if self.refused is not None else ""
        return (
            f"The next round waits for {left} more clean {'group' if left == 1 else 'groups'} of {self.champion} "
            f"({self.groups} of {self.needed}{why})."
        )


async def next_round(registry: Registry, champion: Version, settings: Settings) -> NextRound:
    """What the next round waits for.

    A round is worth its cost when it is expected to lower the number of draws for an answer. So none begins while one
    draw answers, and after one that the gate refused the next waits until there are twice as many groups.

    Only rounds by the newest reward have trained on a group: what was learnt by another one says nothing of it. Groups
    that another reward scored are counted if the round would score them again, which `train.rescore` says.
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
        most=max(needed or 0, MOST_COUNTED),
    )
    return NextRound(champion.name, groups, needed, refused)


def started_from(training: Mapping[str, Any]) -> str | None:
    """The version that a training started from; in records of older releases it is called the sampler."""
    start: str | None = training.get("start", training.get("sampler"))
    return start


def _learnt_by(training: Mapping[str, Any], reward: RewardKey | None) -> bool:
    """Whether a training was by `reward`; yes where one of the two is not known."""
    learnt = training.get("reward")
    return learnt is None or reward is None or (learnt["name"], learnt["version"]) == reward
