"""`bonbon pairs rescore`: scores logged candidates with the configured reward."""

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

MAX_NAMED = 10
"""Maximum number of unscored groups that the command prints; with `--json` it prints all of them."""


def rescore_groups(settings: Settings, bar: Bar, version: str | None, newest: int | None, *, as_json: bool) -> None:
    """Scores the groups that the configured reward has not scored yet, and prints the result.

    The command exits with status 1 if a group could not be scored.

    Raises:
        UserError: No reward is configured, or the log has no group of `version`.
        RewardError: The reward cannot score.
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
            "no reward is configured that could score the groups: name one with --reward, or set reward "
            "(BONBON_REWARD, or reward in bonbon.toml)",
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
        out.print(f"There is nothing to score: {reward.name} {reward.version} has scored every group.", soft_wrap=True)
        return
    counts = ", ".join(f"{count} {name}" for name, count in {"clean": found.clean, **found.unclean}.items())
    out.print(f"{found.scored} groups scored by {reward.name} {reward.version}: {counts}", soft_wrap=True)
    if found.unreadable:
        out.print(
            f"{found.unreadable} groups keep their scores: their prompts were sent as token ids, and their model's "
            "tokenizer is not on this machine. Run this command where the model's directory is available.",
            soft_wrap=True,
        )
    if found.failed:
        out.print(
            f"{len(found.failed)} groups could not be scored and keep their scores. Run this command again to retry "
            "them:",
            soft_wrap=True,
        )
        for group_id in list(found.failed)[:MAX_NAMED]:
            out.print(f"  {group_id}: {found.failed[group_id]}", soft_wrap=True)
        if len(found.failed) > MAX_NAMED:
            out.print(f"  and {len(found.failed) - MAX_NAMED} more; --json names all of them")
