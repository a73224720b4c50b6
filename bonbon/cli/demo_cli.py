"""`bonbon demo`."""

import asyncio
import json
import os
import signal
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from bonbon.errors import UserError
from bonbon.extras import TRAINING, need


class Engine(StrEnum):
    """What the demo can draw with."""

    EMBEDDED = "embedded"
    VLLM = "vllm"
    REMOTE = "remote"


def demo(
    json_file: Path = typer.Option(None, "--json", help="Write every figure to this file."),
    exit_: bool = typer.Option(False, "--exit", help="Stop the service and exit when done."),
    rounds: int = typer.Option(1, min=1, help="Distil again, from the champion's own groups."),
    full_training: bool = typer.Option(
        False, help="Train as the settings' defaults say, which takes many minutes for each round."
    ),
    seed: int = typer.Option(1, help="Seeds the traffic, the draws and the training."),
    traffic: int = typer.Option(1000, min=100, help="Requests to answer before training."),
    measured: int = typer.Option(150, min=20, help="Requests on which every policy is measured."),
    data_dir: Path = typer.Option(None, help="Where logs, versions and runs go (default: data/demo-TIME)."),
    engine: Engine = typer.Option(
        Engine.EMBEDDED, help="Which engine draws; vllm needs bonbon-serve[vllm], remote --url."
    ),
    port: int = typer.Option(0, min=0, max=65535, help="Port of the service; 0 takes a free one."),
    url: list[str] = typer.Option(
        [], "--url", help="A vLLM server of the fleet that --engine remote draws on; may be repeated."
    ),
) -> None:
    """Watch the whole loop close on tiny models: serve best-of-n, log, train, gate, swap, draw less."""
    if (engine is Engine.REMOTE) != bool(url):
        raise UserError("--engine remote and --url need each other: name each vLLM server of the fleet with a --url")
    need("the demo", "demo", "openai", "httpx2", *TRAINING)
    directory = data_dir or Path("data") / time.strftime("demo-%Y%m%d-%H%M%S")
    directory.mkdir(parents=True, exist_ok=True)
    plan = {
        "seed": seed,
        "rounds": rounds,
        "full_training": full_training,
        "traffic": traffic,
        "measured_requests": measured,
        "engine": str(engine),
        "port": port,
        "urls": tuple(url),
    }
    raise typer.Exit(asyncio.run(_run(directory.absolute(), json_file, exit_, plan)))


async def _run(directory: Path, json_file: Path | None, leave: bool, plan: dict[str, Any]) -> int:
    # Tiny models are computed fastest by one thread, here and in the processes that the demo starts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from bonbon.demo.run import Demo, DemoOptions

    console = Console()
    demo = Demo(DemoOptions(data_dir=directory, **plan), console)
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(demo.run())

    def interrupt() -> None:
        interrupted.set()
        running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        passed = await running
        if json_file is not None:
            figures = json.dumps(demo.results.to_dict(), indent=2)
            await asyncio.to_thread(json_file.write_text, figures + "\n")
            console.print(f"figures written to {json_file}")
        if not passed:
            console.print("[bold red]The gate refused the distilled version; best-of-n keeps answering.[/]")
        if demo.service is not None and not leave:
            console.print(f"\nThe service is still up: [bold]{demo.service.url}[/] (docs at {demo.service.url}/docs)")
            console.print("Press Ctrl-C to stop it.")
            served = asyncio.create_task(demo.service.wait())
            await asyncio.wait([served, asyncio.create_task(interrupted.wait())], return_when=asyncio.FIRST_COMPLETED)
        return 0 if passed else 1
    except asyncio.CancelledError:
        console.print("interrupted")
        return 130
    finally:
        if demo.service is not None:
            await demo.service.stop()
