"""Prints a summary of a version, or everything that is stored about it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.json import JSON
from rich.table import Table
from rich.text import Text

from bonbon.engines.engine import VersionKind
from bonbon.registry.evaluation_figures import evaluation_figures
from bonbon.registry.transfer.exported_version import IMPORTED
from bonbon.registry.version_records import Event, Version

EVENTS = 5
"""Entries of the history that are shown by default."""


def print_version(
    out: Console, version: Version, aliases: Sequence[str], history: Sequence[Event], *, full: bool
) -> None:
    """Prints the important figures of a version, the gate's verdict, and the end of its history.

    Args:
        aliases: The aliases of the version.
        history: Entries of the audit trail, newest first.
        full: Print the whole training record, evaluation, verdict and history.
    """
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for title, value in _facts(version, aliases, full=full):
        if value:
            facts.add_row(title, value)
    out.print(Text(version.name, "bold"), soft_wrap=True)
    out.print(facts)
    if version.evaluation:
        out.print(_figures(version))
    for line in _gate(version.verdict):
        out.print(line, soft_wrap=True)
    if full:
        _print_records(out, version)
    shown = history if full else history[:EVENTS]
    out.print(Text.assemble(("history", "bold"), ", newest first"))
    for event in shown:
        detail = (event.detail if full else event.detail.get("reason")) or ""
        shown_event = f"  {event.time:%Y-%m-%d %H:%M:%S} {event.kind} by {event.actor} {detail}"
        out.print(Text(shown_event.rstrip()), soft_wrap=True)
    if not full:
        left = len(history) - len(shown)
        earlier = f", and {left} earlier {'line' if left == 1 else 'lines'} of the history" if left else ""
        out.print(f"--full shows all measurements{earlier}.")


def _facts(version: Version, aliases: Sequence[str], *, full: bool) -> Iterator[tuple[str, str]]:
    """Yields the facts about a version apart from its evaluation, as titles and values."""
    training = version.training
    imported = training.get(IMPORTED)
    if isinstance(imported, Mapping):
        training = imported.get("training") or {}
    settings = training.get("settings") or {}
    yield "state", f"{version.state} ({', '.join(aliases)})" if aliases else str(version.state)
    yield "kind", "base model" if version.kind is VersionKind.BASE else f"{version.kind} on {version.base}"
    if isinstance(imported, Mapping):
        yield "imported", f"from {imported.get('version')}; its figures were measured there"
    if version.parent not in (None, version.base):
        yield "parent", str(version.parent)
    if version.kind is not VersionKind.BASE:
        yield "answers", "with one draw" if version.k == 1 else f"with the best of {version.k} draws"
    saved = (version.verdict or {}).get("saved")
    yield "saves", "" if saved is None else f"{saved:.0%} of the tokens of what was served before it"
    method = ", ".join(str(settings[key]) for key in ("loss", "method") if settings.get(key))
    counts = ", ".join(f"{training[key]:,} {key}" for key in ("groups", "steps") if isinstance(training.get(key), int))
    yield "training", "; ".join(part for part in (method, counts) if part)
    yield "created", f"{version.created:%Y-%m-%d %H:%M:%S} UTC"
    yield "digest", version.digest
    if full:
        yield "directory", str(version.directory) if version.digest else "not on this machine"


def _figures(version: Version) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("measured", "value", "95 % interval", "against or by"):
        table.add_column(title, overflow="fold")
    for column in table.columns[1:3]:
        column.justify, column.no_wrap = "right", True
    for figure in evaluation_figures(version.evaluation, version.k):
        table.add_row(figure.title, *figure.shown, figure.note)
    return table


def _gate(verdict: Mapping[str, Any] | None) -> Iterator[Text]:
    """Yields the gate's verdict, without the individual checks of a version that passed."""
    if verdict is None:
        yield Text("The gate has not judged it.")
        return
    reasons = [{"text": reason} if isinstance(reason, str) else reason for reason in verdict.get("reasons") or ()]
    if verdict.get("passed"):
        yield Text(f"The gate passed it ({len(reasons)} checks).", "green")
        return
    if IMPORTED not in verdict:
        yield Text("The gate refused it:", "red")
    for reason in reasons:
        if not reason.get("passed"):
            yield Text(f"  {reason.get('text')}")


def _print_records(out: Console, version: Version) -> None:
    for title in ("training", "evaluation", "verdict"):
        if getattr(version, title):
            out.print(Text(title, "bold"), JSON.from_data(getattr(version, title)))
