"""Scores older groups with the newest reward before a round, when that reward has scored too few."""

import structlog

from bonbon.pairs.reading.reader import RewardKey, count_trainable
from bonbon.pairs.rescoring.rescore import Scope, count_rescorable, rescore, started
from bonbon.progress import Bars
from bonbon.rewards import build_reward
from trainer.context import RunContext
from trainer.drawing import refuse_other_reward, why_not_drawn

log = structlog.get_logger(__name__)


async def rescore_older(context: RunContext, start: str, reward: RewardKey) -> None:
    """Scores groups of the base and of the version `start` with `reward` where another reward has scored them.

    For each of the two versions it scores the newest groups until `loop.min_groups` of them can be trained on. This is
    cheaper than drawing, because new groups have to be scored as well. Nothing is scored when `train.rescore` is off or
    when the configured reward is not `reward`.

    Raises:
        UserError: The configured reward cannot be loaded, or it is not `reward` and the training may draw.
        RewardError: The reward fails to score; the scores stored before are kept.
    """
    settings = context.settings
    if settings.reward is None:
        return
    can_draw = why_not_drawn(settings) is None
    missing = await _missing(context, start, reward) if settings.train.rescore else {}
    if not (missing or can_draw):
        return
    # What only names the reward costs no score, but one that has to score is tested before the round depends on it.
    async with started(build_reward(settings.reward), expected=None if missing else reward) as (configured, key):
        if can_draw:
            refuse_other_reward(key, reward)
        if missing and key != reward:
            log.warning(
                "older groups are not scored again, because the newest ones have another reward than the settings name",
                settings=" ".join(key),
                newest=" ".join(reward),
                remedy="set the same reward for service and trainer, or run bonbon pairs rescore",
            )
            return
        with Bars(show=context.progress) as bars:
            for version, missing_groups in missing.items():
                with bars.task(f"scoring older groups of {version} by {reward.name}", missing_groups) as task:
                    found = await rescore(
                        context.database,
                        configured,
                        Scope((version,), settings.train.tenants),
                        limit=missing_groups,
                        progress=task,
                        data_dir=settings.data_dir,
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
    """Returns how many groups of each version are to be scored again."""
    database, tenants = context.database, context.settings.train.tenants
    wanted = context.settings.loop.min_groups
    missing = {}
    for version in dict.fromkeys((context.base.name, start)):
        left = wanted - await count_trainable(database, version, reward, tenants=tenants, limit=wanted)
        if left > 0 and (older := await count_rescorable(database, reward, Scope((version,), tenants))):
            missing[version] = min(left, older)
    return missing
