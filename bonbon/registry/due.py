"""How much has been logged since a version was last trained."""

from collections.abc import Collection, Mapping
from typing import Any

from bonbon.pairs.reader import count_clean
from bonbon.registry.registry import Registry


async def new_groups(registry: Registry, champion: str, tenants: Collection[str] | None = None) -> int:
    """Clean groups of `champion` (of `tenants`; None: of all) that are newer than those it has been trained on."""
    trained_on = [v.training["last_group"] for v in await registry.list() if started_from(v.training) == champion]
    return await count_clean(registry.database, champion, after=max(trained_on, default=None), tenants=tenants)


def started_from(training: Mapping[str, Any]) -> str | None:
    """The version that a training started from; in records of older releases it is called the sampler."""
    start: str | None = training.get("start", training.get("sampler"))
    return start
