"""`bonbon doctor`."""

import asyncio
import logging
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from bonbon.cli.database_options import AsJson, DatabaseUrl, DataDir, console, print_json
from bonbon.observability.logs import configure_logs
from bonbon.settings import load_settings
from service.doctor.checks import Finding, State, examine

MARKS = {State.GOOD: ("✓", "green"), State.WARNING: ("!", "yellow"), State.PROBLEM: ("✗", "bold red")}


def doctor(
    model: Annotated[str | None, typer.Option(help="The base model: a directory, or a hub name.")] = None,
    reward: Annotated[
        str | None, typer.Option(help="A reward model's directory or hub name, a URL, or kind:target.")
    ] = None,
    data_dir: DataDir = None,
    database: DatabaseUrl = None,
    engine: Annotated[str | None, typer.Option(help="Which engine draws: embedded, vllm, remote, fake.")] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Also start the engine and draw a few tokens.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check model, device, rewards, database, disk, port and keys, and say what to do about what is wrong.

    Serves nothing and changes nothing. The exit status is 1 if a problem would keep the service from answering.
    """
    # Among the findings, which say what went wrong, retries and truncated dummy answers would only confuse.
    configure_logs(level=logging.ERROR, libraries=logging.ERROR)
    settings = load_settings(model=model, reward=reward, data_dir=data_dir, database_url=database, engine=engine)
    printer = console()

    async def run() -> list[Finding]:
        findings = []
        async for finding in examine(settings, draw=draw):
            findings.append(finding)
            if not as_json:
                mark, style = MARKS[finding.state]
                said = Text.assemble((mark, style), f" {finding.check:<16}{finding.text}")
                printer.print(said, soft_wrap=True)
        return findings

    findings = asyncio.run(run())
    problems = sum(finding.state is State.PROBLEM for finding in findings)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings], "problems": problems})
    elif problems:
        printer.print(f"{problems} of {len(findings)} checks found what keeps the service from answering")
    else:
        printer.print("nothing keeps the service from answering: start it with `bonbon serve`")
    if problems:
        raise typer.Exit(1)
