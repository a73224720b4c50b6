"""`bonbon pairs`: inspects, exports, scores, replays and purges the pair log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from bonbon.cli.database_options import AsJson, DatabaseUrl, DataDir, console, open_store, print_json, store_settings
from bonbon.cli.durations import age
from bonbon.cli.rescore_cli import rescore_groups
from bonbon.cli.spool_cli import delete_set_aside, replay_set_aside, show_spool
from bonbon.curve.best_of_k import SHARE, Curve, make_curve
from bonbon.curve.curve_table import print_curve
from bonbon.curve.group_selection import select_groups
from bonbon.erase import Erased, erase
from bonbon.errors import UserError
from bonbon.extras import need
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.purge import count_purgeable
from bonbon.pairs.reading.pair_stats import MARGIN_GROUPS, PairStats, stats
from bonbon.pairs.reading.reader import count_clean
from bonbon.pairs.spool.set_aside import set_aside_in
from bonbon.progress import bar
from bonbon.rewards import build_reward
from bonbon.rewards.reward import Reward
from bonbon.settings import Settings, load_settings

app = typer.Typer(help="Inspect, export, rescore and purge the pair log.", no_args_is_help=True)


class Format(StrEnum):
    """File formats of an export."""

    PARQUET = "parquet"
    JSONL = "jsonl"


@app.command("stats")
def show_stats(data_dir: DataDir = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Count groups by quality, version and reward, and show the results of audits."""
    found = asyncio.run(_stats(store_settings(data_dir, database)))
    if as_json:
        print_json(asdict(found))
    else:
        _print_stats(found)


@app.command("export")
def export_pairs(
    path: Annotated[Path, typer.Argument(help="The file to write.")],
    format: Annotated[Format, typer.Option(help="The file format.")] = Format.PARQUET,
    version: Annotated[str | None, typer.Option(help="Only groups sampled from this version.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="Only groups of this tenant; may be repeated.")] = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write the best and worst candidate of every clean group as a preference data set for TRL."""
    settings = store_settings(data_dir, database)
    written = asyncio.run(_export(settings, path, format, version, tenant))
    if as_json:
        print_json({"path": path, "format": format, "version": version, "pairs": written})
    else:
        console().print(f"{written} pairs written to {path} ({format})", soft_wrap=True)


@app.command("curve")
def show_curve(
    version: Annotated[
        str | None, typer.Option(help="Only groups sampled from this version (default: the one with most groups).")
    ] = None,
    n: Annotated[
        int | None, typer.Option(min=2, help="Largest k of the curve (default: the n that most groups have).")
    ] = None,
    newest: Annotated[int | None, typer.Option(min=2, help="Use only this many groups, the newest ones.")] = None,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Mark the k after which another candidate adds less than this share of the gain so far."
        ),
    ] = SHARE,
    judge: Annotated[
        str | None,
        typer.Option(
            help="An independent reward: kind:target, model or URL (default: held_out_reward in the settings)."
        ),
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Plot the curve to this file.")] = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the quality of best-of-k for every k up to the logged n, from the log alone."""
    settings = load_settings(data_dir=data_dir, database_url=database, held_out_reward=judge)
    if png is not None:
        need("--png", "train", "matplotlib", param="png")
    found = asyncio.run(_curve(settings, version, n, newest, share))
    if png is not None:
        from bonbon.curve.curve_picture import save

        save(found, png)
    if as_json:
        print_json(found.to_dict())
    else:
        print_curve(console(), found)


@app.command("rescore")
def rescore(
    version: Annotated[str | None, typer.Option(help="Only groups sampled from this version.")] = None,
    newest: Annotated[int | None, typer.Option(min=1, help="Score only this many groups, the newest ones.")] = None,
    reward: Annotated[
        str | None, typer.Option(help="The reward: kind:target, model or URL (default: reward in the settings).")
    ] = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Score the logged candidates with the configured reward. Earlier scores are kept.

    If the command is interrupted, run it again to continue where it stopped.
    """
    settings = load_settings(data_dir=data_dir, database_url=database, reward=reward)
    rescore_groups(settings, bar, version, newest, as_json=as_json)


@app.command("spool")
def spool(
    replay: Annotated[bool, typer.Option("--replay", help="Try again to store the groups that are set aside.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the groups that are set aside.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show the groups that wait for the database, and those set aside because the database rejects them."""
    settings = store_settings(data_dir, database)
    if replay and delete:
        raise UserError("--replay and --delete cannot be combined: replay first, then delete what is left")
    if replay:
        replay_set_aside(settings, bar, as_json=as_json)
    elif delete:
        delete_set_aside(settings, ask=not yes, as_json=as_json)
    else:
        show_spool(settings, as_json=as_json)


@app.command("purge")
def purge_groups(
    older_than: Annotated[
        str | None, typer.Option(help="Only groups older than this, such as 30d, 12h, 2w, 45m or 90s.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only groups of this end user, as named in requests.")] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Only the groups of the response with this x-request-id.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only groups of this tenant.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Delete groups with their candidates, comparisons and feedback. Several options select groups that match all."""
    before = None if older_than is None else datetime.now(UTC) - age(older_than, "--older-than")
    conditions = Conditions(before, user, request_id, tenant)
    if not any(value is not None for value in asdict(conditions).values()):
        raise UserError("name the groups to delete: --older-than 30d, --user NAME, --request-id ID or --tenant NAME")
    settings = store_settings(data_dir, database)
    erased = asyncio.run(_purge(settings, conditions, ask=not yes))
    deleted, lineage = erased.groups, erased.lineage
    if as_json:
        result = {"deleted": deleted, "set_aside": erased.set_aside, "snapshots": erased.snapshots}
        print_json(asdict(conditions) | result | asdict(lineage))
        return
    out = console()
    out.print(
        f"{deleted} groups deleted. A running service continues to log; "
        "existing exports and versions that contain or learned from these groups are unchanged.",
        soft_wrap=True,
    )
    if erased.set_aside:
        out.print(f"also deleted: {erased.set_aside} groups that the spool had set aside")
    for path in erased.snapshots:
        out.print(f"also deleted: the training snapshot {path}", soft_wrap=True)
    for text, names in (
        ("trained on some of these groups", lineage.trained),
        ("derived from those versions", lineage.descended),
    ):
        if names:
            out.print(f"versions {text}: {', '.join(names)}", soft_wrap=True)


async def _stats(settings: Settings) -> PairStats:
    async with open_store(settings) as database:
        return await stats(database)


async def _export(
    settings: Settings, path: Path, format: Format, version: str | None, tenants: list[str] | None
) -> int:
    # This imports pyarrow, which the other commands do not need.
    from bonbon.pairs.reading.pair_export import export

    async with open_store(settings) as database:
        total = await count_clean(database, version, tenants=tenants, own_rewards=tenants is not None)
        if version is not None and total == 0:
            known = ", ".join((await stats(database)).versions) or "none"
            raise UserError(f"the pair log has no clean group of version {version!r}; it has groups of: {known}")
        with bar("exporting", total) as progress:
            return await export(database, path, format.value, version=version, tenants=tenants, progress=progress)


async def _curve(settings: Settings, version: str | None, n: int | None, newest: int | None, share: float) -> Curve:
    judge = build_reward(settings.held_out_reward) if settings.held_out_reward else None
    async with open_store(settings) as database, _running(judge):
        selection = await select_groups(database, version=version, n=n, newest=newest)
        with bar("reading groups" if judge is None else f"judging by {judge.name}", selection.groups) as progress:
            return await make_curve(database, selection, share=share, judge=judge, progress=progress)


@asynccontextmanager
async def _running(judge: Reward | None) -> AsyncIterator[None]:
    if judge is not None:
        await judge.start()
    try:
        yield
    finally:
        if judge is not None:
            await judge.stop()


async def _purge(settings: Settings, conditions: Conditions, *, ask: bool) -> Erased:
    async with open_store(settings) as database:
        count = await count_purgeable(database, conditions) + set_aside_in(settings.spool_dir).matching(conditions)
        if count and ask:
            typer.confirm(f"Permanently delete {count} groups{conditions}?", abort=True, err=True)
        with bar("deleting", count) as progress:
            return await erase(database, settings.runs_dir, conditions, spool_dir=settings.spool_dir, progress=progress)


def _print_stats(found: PairStats) -> None:
    out = console()
    span = "" if found.first is None else f", {found.first:%Y-%m-%d %H:%M} to {found.last:%Y-%m-%d %H:%M} UTC"
    counted = f" groups, {found.candidates} candidates, {found.feedback} feedback{span}"
    out.print(Text.assemble((str(found.groups), "bold"), counted), soft_wrap=True)
    table = Table("", "groups", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    table.add_row("clean", str(found.clean))
    for kind, counts in (("unclean", found.unclean), ("version", found.versions), ("reward", found.rewards)):
        for name, count in counts.items():
            table.add_row(f"{kind} {name}", str(count))
    if found.rescored:
        table.add_row("scored again", str(found.rescored))
    out.print(table)
    if found.mean_margin is not None:
        out.print(f"mean reward of chosen minus rejected, newest {MARGIN_GROUPS:,} groups: {found.mean_margin:.4g}")
    if found.comparisons:
        audits = Table("version", "k", "against", "win", "tie", "loss", title="audits", box=None, pad_edge=False)
        for row in found.comparisons:
            audits.add_row(*(str(row[name]) for name in ("version", "k", "opponent", "win", "tie", "loss")))
        out.print(audits)
