"""`bonbon pairs rescore`: the log's texts, scored by the reward that is configured now."""

import asyncio
from dataclasses import asdict

import typer

from bonbon.cli.database_options import console, open_store, print_json
from bonbon.errors import UserError
from bonbon.pairs.reading.reader import RewardKey, logged_versions
from bonbon.pairs.rescoring.rescore import Rescored, Scope, count_rescorable, rescore, started
from bonbon.progress import Bar
from bonbon.rewards import build_reward
from bonbon.settings import Settings

MOST_NAMED = 10
"""Groups that could not be scored and are named; `--json` names all of them."""


def rescore_groups(settings: Settings, bar: Bar, version: str | None, newest: int | None, *, as_json: bool) -> None:
    """Have the reward of the settings score what it has not scored yet, and print what came of it.

    The command ends with status 1 when a group could not be scored.

    Raises:
        UserError: no reward is set, or the log has no group of `version`.
        RewardError: the reward cannot score.
    """
    reward, found = asyncio.run(_rescore(settings, bar, version, newest))
    if as_json:
        print_json({"reward": reward._asdict(), "clean": found.clean} | asdict(found))
    else:
        _print(reward, found)
    if found.failed:
        raise typer.Exit(1)


async def _rescore(settings: Settings, bar: Bar, version: str | None, newest: int | None) -> tuple[RewardKey, Rescored]:
    if settings.reward is None:
        raise UserError(
            "no reward is set that could score the groups: name one with --reward, or set reward (BONBON_REWARD, or "
            "reward in bonbon.toml)",
            param="reward",
        )
    scope = Scope(None if version is None else (version,))
    async with open_store(settings) as database:
        if version is not None and version not in (known := await logged_versions(database)):
            names = ", ".join(known) or "none"
            raise UserError(f"the pair log has no group of version {version!r}; it has groups of: {names}")
        async with started(build_reward(settings.reward)) as (reward, key):
            total = await count_rescorable(database, key, scope)
            total = total if newest is None else min(total, newest)
            with bar(f"scoring by {reward.name}", total) as progress:
                return key, await rescore(
                    database, reward, scope, limit=newest, progress=progress, data_dir=settings.data_dir
                )


def _print(reward: RewardKey, found: Rescored) -> None:
    out = console()
    if found == Rescored():
        out.print(f"No group is left to score: {reward.name} {reward.version} has scored all of them.", soft_wrap=True)
        return
    counts = ", ".join(f"{count} {name}" for name, count in {"clean": found.clean, **found.unclean}.items())
    out.print(f"{found.scored} groups scored by {reward.name} {reward.version}: {counts}", soft_wrap=True)
    if found.unreadable:
        out.print(
            f"{found.unreadable} groups keep their scores: their prompts came as token ids, and the tokenizer of their "
            "model is not here. Run this where the model's directory is.",
            soft_wrap=True,
        )
    if found.failed:
        out.print(
            f"{len(found.failed)} groups could not be scored and keep their scores. Run this again to try them once "
            "more:",
            soft_wrap=True,
        )
        for group_id in list(found.failed)[:MOST_NAMED]:
            out.print(f"  {group_id}: {found.failed[group_id]}", soft_wrap=True)
        if len(found.failed) > MOST_NAMED:
            out.print(f"  and {len(found.failed) - MOST_NAMED} more; --json names all of them")
