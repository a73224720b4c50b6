"""Finds out whether there is something to train, without torch, an engine or a reward."""

from dataclasses import dataclass

from bonbon.registry.next_round import next_round
from bonbon.registry.registry import Registry
from bonbon.settings import Settings
from bonbon.store.database import open_database
from trainer.run_directory import unfinished_rounds


@dataclass(frozen=True, slots=True)
class Work:
    """Whether a trainer that starts now has something to do, and a sentence that says why."""

    is_ready: bool
    why: str


async def find_work(settings: Settings) -> Work:
    """Returns what a trainer with these settings would do now.

    Raises UserError when there is no database, and StoreError when it does not answer.
    """
    if unfinished := unfinished_rounds(settings.runs_dir):
        return Work(True, f"The round in {unfinished[0]} was cut off and goes on.")
    async with open_database(settings.database, create=False, timeouts=settings.database_timeouts) as database:
        registry = Registry(database, settings.versions_dir)
        name = await registry.champion()
        if name is None:
            return Work(False, "Nothing is served yet: no gateway has registered its base model.")
        upcoming = await next_round(registry, await registry.get(name), settings)
    return Work(upcoming.is_ready, upcoming.waits_for)
