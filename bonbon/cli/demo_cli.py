"""`bonbon demo`: runs the whole loop on tiny models."""

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
    """Engines that the demo can use."""

    EMBEDDED = "embedded"
    VLLM = "vllm"
    REMOTE = "remote"


def demo(
    json_file: Path = typer.Option(None, "--json", help="Write all results to this file as JSON."),
    exit_: bool = typer.Option(False, "--exit", help="Stop the service and exit when done."),
    rounds: int = typer.Option(
        1, min=1, help="Rounds of distillation; each later one learns from the champion's own groups."
    ),
    full_training: bool = typer.Option(
        False, help="Train with the default settings, which takes many minutes per round."
    ),
    seed: int = typer.Option(1, help="Seed of the requests, the sampling and the training."),
    traffic: int = typer.Option(1000, min=100, help="Number of requests to answer before training."),
    measured: int = typer.Option(150, min=20, help="Number of requests on which to measure every policy."),
    data_dir: Path = typer.Option(
        None, help="Directory for the database, versions and runs (default: data/demo-TIME)."
    ),
    engine: Engine = typer.Option(
        Engine.EMBEDDED, help="The engine; vllm needs bonbon-serve[vllm], remote needs --url."
    ),
    port: int = typer.Option(0, min=0, max=65535, help="Port of the service; 0 takes a free one."),
    url: list[str] = typer.Option([], "--url", help="A vLLM server that --engine remote uses; may be repeated."),
) -> None:
    """Run the whole loop on tiny models: serve best-of-n, log, train, evaluate, swap, and sample fewer candidates."""
    if (engine is Engine.REMOTE) != bool(url):
        raise UserError("--engine remote and --url must be used together: name each vLLM server with a --url")
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
    # Tiny models run fastest on one thread, here and in the processes that the demo starts.
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
            console.print(f"wrote the results to {json_file}")
        if not passed:
            console.print("[bold red]The gate refused the distilled version, so best-of-n continues to answer.[/]")
        if demo.service is not None and not leave:
            console.print(
                f"\nThe service is still running: [bold]{demo.service.url}[/] (docs at {demo.service.url}/docs)"
            )
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
