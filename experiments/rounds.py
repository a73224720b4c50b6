"""Runs the whole loop for several rounds in the demo's text world with default settings, measured over HTTP."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from bonbon.demo.run import Demo, DemoOptions
from bonbon.registry.evaluation_figures import best_of
from bonbon.theory import best_of_n_kl
from experiments.cells import Cell, Row
from experiments.tables import interval, table

NAME = "rounds"
ROUNDS = 3
HEAD = (
    "answered by",
    "draws (k)",
    "win rate",
    "against best-of-n",
    "KL of one draw",
    "tokens per answer",
    "saved, audits included",
    "latency, s",
    "to the first token, s",
)


def cells(quick: bool) -> list[Cell]:
    if quick:  # even the smallest version takes a whole demo
        return []
    return [Cell(f"{NAME}/seed-1", run, {"seed": 1, "most_rounds": ROUNDS, "n": 8, "traffic": 1000, "measured": 150})]


def run(seed: int, most_rounds: int, n: int, traffic: int, measured: int) -> dict[str, Any]:
    """Returns what `bonbon demo --full-training` writes."""
    with TemporaryDirectory() as directory:
        plan = DemoOptions(
            data_dir=Path(directory),
            seed=seed,
            rounds=most_rounds,
            full_training=True,
            n=n,
            traffic=traffic,
            measured_requests=measured,
        )
        return asyncio.run(_demo(Demo(plan, Console(stderr=True))))


async def _demo(demo: Demo) -> dict[str, Any]:
    try:
        await demo.run()
        return demo.results.to_dict()
    finally:
        if demo.service is not None:
            await demo.service.stop()


def section(rows: Sequence[Row]) -> str:
    (row,) = rows
    measured, lines = row["measured"], list(_lines(row))
    requests = row["swap"].get("requests", 0)
    return f"""`bonbon demo --full-training --rounds {row["most_rounds"]}`: a service with an embedded engine answers
{row["traffic"]:,} requests with best-of-{row["n"]}, `bonbon loop` trains on the groups with the settings' defaults, the
gate decides, and the promoted version answers with as many draws as the gate has chosen; where it uses several, a
single draw was measured as well. The next round learns from the groups that it draws. No round follows one after which
one draw answers. Everything is measured from outside, over HTTP, on the same {measured} other requests, with 3 answers
each; intervals of 95 % take the request as the cluster.
Win rates are against one draw of the base and, in the next column, against best-of-{row["n"]} of the base. What is
saved is the service's own count (`GET /admin/win-rate`) over the {row["traffic"]:,} requests after the promotion.
{requests:,} requests were sent while versions were exchanged, of which {row["swap"].get("failed", 0)} failed.

{table(HEAD, lines)}

{_refused(row)}"""


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    yield _line("the base", row["base"], "0")
    yield _line(f"the base, {best_of(row['n'])}", row["before"], f"at most {best_of_n_kl(row['n']):.2f}")
    for number, done in enumerate(row["rounds"], 1):
        if "after" in done:
            savings = done.get("live", {}).get("savings")
            saved = "" if savings is None or savings["saved_share"] is None else f"{100 * savings['saved_share']:.1f} %"
            kl = f"{done['one_draw']['kl']:.2f}"
            if done["after"]["k"] > 1:
                yield _line(f"one draw of round {number}", done["one_draw"], kl)
            yield _line(f"round {number}", done["after"], kl, saved)


def _line(name: str, figures: dict[str, Any], kl: str, saved: str = "") -> tuple[str, ...]:
    return (
        name,
        f"{figures['k']:.0f}",
        estimated(figures, "win_rate"),
        estimated(figures, "win_rate_best_of_n") if figures["win_rate_best_of_n"] is not None else "",
        kl,
        f"{figures['tokens_per_answer']:.1f}",
        saved,
        f"{figures['latency_p50_s']:.2f}",
        f"{figures['ttft_p50_s']:.2f}",
    )


def estimated(figures: Mapping[str, Any], name: str) -> str:
    """Returns a figure of the demo's results with its interval, or nothing if it was not measured."""
    if figures[name] is None:
        return ""
    return interval(figures[name], figures[f"{name}_low"], figures[f"{name}_high"], 3)


def _refused(row: Row) -> str:
    refused = [(number, done["gate"]) for number, done in enumerate(row["rounds"], 1) if not done["gate"]["passed"]]
    lines = [f"The gate refused the version of round {number}: {_why(gate['reasons'])}." for number, gate in refused]
    return " ".join(lines) or "The gate refused no version."


def _why(reasons: Sequence[str]) -> str:
    return "; ".join(
        reason for reason in reasons if not any(word in reason for word in (" is at least ", " is at most "))
    )
