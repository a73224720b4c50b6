"""Before a round: older groups are scored by the newest reward where that has scored too few."""

import structlog

from bonbon.pairs.reading.reader import RewardKey, count_trainable
from bonbon.pairs.rescoring.rescore import Scope, count_rescorable, rescore, started
from bonbon.rewards import build_reward
from trainer.context import RunContext
from trainer.progress_bars import bar

log = structlog.get_logger(__name__)


async def rescore_older(context: RunContext, start: str, reward: RewardKey) -> None:
    """Have `reward` score groups of the base and of the version `start` that another reward has scored.

    Of each of the two it scores the newest ones until `loop.min_groups` of its groups can be trained on. This is always
    cheaper than drawing: whoever draws new groups has them scored as well. Nothing is scored when `train.rescore` is
    off, and when the reward of the settings is another one than `reward`.

    Raises:
        UserError: the reward of the settings cannot be had.
        RewardError: it cannot score; what it has scored before is kept.
    """
    settings = context.settings
    if not settings.train.rescore or settings.reward is None:
        return
    missing = await _missing(context, start, reward)
    if not missing:
        return
    async with started(build_reward(settings.reward)) as (configured, key):
        if key != reward:
            log.warning(
                "older groups are not scored again, because the newest ones have another reward than the settings name",
                settings=" ".join(key),
                newest=" ".join(reward),
                remedy="set the same reward for service and trainer, or run bonbon pairs rescore",
            )
            return
        with bar(f"scoring older groups by {reward.name}", sum(missing.values()), show=context.progress) as advance:
            for version, most in missing.items():
                done = 0

                def progress(count: int) -> None:
                    nonlocal done
                    advance(count - done)
                    done = count

                scope = Scope((version,), settings.train.tenants)
                found = await rescore(
                    context.database, configured, scope, most=most, progress=progress, data_dir=settings.data_dir
                )
                log.info(
                    "older groups were scored by the newest reward",
                    version=version,
                    scored=found.scored,
                    clean=found.clean,
                    failed=len(found.failed),
                    unreadable=found.unreadable,
                )


async def _missing(context: RunContext, start: str, reward: RewardKey) -> dict[str, int]:
    """How many groups of each version are to be scored again."""
    database, tenants = context.database, context.settings.train.tenants
    wanted = context.settings.loop.min_groups
    missing = {}
    for version in dict.fromkeys((context.base.name, start)):
        left = wanted - await count_trainable(database, version, reward, tenants=tenants, most=wanted)
        if left > 0 and (older := await count_rescorable(database, reward, Scope((version,), tenants))):
            missing[version] = min(left, older)
    return missing
