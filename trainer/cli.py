"""`bonbon train`, `bonbon evaluate` and `bonbon loop`."""

import asyncio
import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import typer
from rich.console import Console

from bonbon.errors import UserError
from bonbon.settings import Settings, load_settings

MODEL = typer.Option(None, help="The base model: a directory in Hugging Face format, or a hub name.")
REWARD = typer.Option(None, help="A reward model's directory or hub name, a URL, or kind:target.")
DATA_DIR = typer.Option(None, help="Where the registry's files, training runs and the default database live.")
PROCESSES = typer.Option(None, help="Training processes on this machine, one a GPU.")
DATABASE = typer.Option(None, help="SQLAlchemy URL of the pair log and registry.")


def train(
    version: str = typer.Option(None, help="Whose groups to train on, and from where (default: the champion)."),
    run: Path = typer.Option(None, help="Run directory (default: a new one in data_dir/runs)."),
    resume: bool = typer.Option(False, "--resume", help="Go on with the run in --run."),
    snapshot: Path = typer.Option(None, help="Train on this snapshot instead of taking a new one."),
    register: bool = typer.Option(False, "--register", help="Then evaluate, judge and register the version."),
    promote: bool = typer.Option(False, "--promote", help="Then promote it, if the gate passes it."),
    processes: int = PROCESSES,
    model: str = MODEL,
    reward: str = REWARD,
    data_dir: Path = DATA_DIR,
    database: str = DATABASE,
) -> None:
    """Train a version from logged groups.

    What is not given here comes from the environment (BONBON_TRAIN__LEARNING_RATE, ...) or from bonbon.toml.
    """
    if resume and run is None:
        raise UserError("--resume needs --run: the directory of the run to go on with", param="run")
    if resume and (version or snapshot):
        raise UserError("--resume goes on with what the run began with: leave --version and --snapshot out")
    settings = _settings(model, reward, data_dir, database, processes)
    asyncio.run(_train(settings, version, run, resume, snapshot, register or promote, promote))


def _settings(
    model: str | None, reward: str | None, data_dir: Path | None, database: str | None, processes: int | None = None
) -> Settings:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        raise UserError(
            f"this is one of {os.environ['WORLD_SIZE']} processes of a launcher: start bonbon once, and let "
            "train.processes or train.launcher start the processes that train",
            param="train.launcher",
        )
    train = None if processes is None else {"processes": processes}
    settings = load_settings(model=model, reward=reward, data_dir=data_dir, database_url=database, train=train)
    missing = [name for name in ("torch", "transformers", "peft", "accelerate", "matplotlib") if not find_spec(name)]
    if missing:
        raise UserError(f"training needs {', '.join(missing)}, not installed here: pip install 'bonbon[train]'")
    return settings


async def _train(
    settings: Settings,
    sampler: str | None,
    run: Path | None,
    resume: bool,
    snapshot: Path | None,
    register: bool,
    promote: bool,
) -> None:
    from trainer.hold import Hold
    from trainer.loop import LEASE
    from trainer.rounds import Round, new_directory
    from trainer.tables import show_version
    from trainer.workshop import open_workshop

    _end_at_once_on_signals()
    console = Console()
    async with (
        open_workshop(settings) as workshop,
        Hold(workshop.database, LEASE, settings.loop.lease_seconds) as hold,
    ):
        if resume and run is not None:
            round_ = Round.open(workshop, run.absolute())
        else:
            directory = run.absolute() if run else new_directory(settings.runs_dir, "train")
            round_ = await Round.create(workshop, directory, sampler=sampler, snapshot=snapshot)
        taken = await round_.snapshot()
        trained = await round_.train()
        console.print(f"trained on {trained['pairs']} pairs of {taken.version} in {trained['steps']} steps")
        if register:
            await round_.evaluate()
            await hold.confirm()
            version = await (round_.promote(actor="cli") if promote else round_.register())
            show_version(console, version)
        else:
            await round_.report()
        console.print(f"report: {round_.directory / 'report.html'}", highlight=False, soft_wrap=True)


def evaluate(
    target: str = typer.Argument(help="A version's name, or a run directory."),
    json_: bool = typer.Option(False, "--json", help="Print the evaluation and the verdict as one JSON object."),
    model: str = MODEL,
    reward: str = REWARD,
    data_dir: Path = DATA_DIR,
    database: str = DATABASE,
) -> None:
    """Measure a version on held-out prompts, and say what the gate would."""
    settings = _settings(model, reward, data_dir, database)
    asyncio.run(_evaluate(settings, target, json_))


async def _evaluate(settings: Settings, target: str, as_json: bool) -> None:
    from trainer.inspection import inspect
    from trainer.workshop import open_workshop

    _end_at_once_on_signals()
    async with open_workshop(settings, progress=not as_json) as workshop:
        evaluation, verdict, report = await inspect(workshop, target)
    if as_json:
        typer.echo(json.dumps({"evaluation": evaluation.to_dict(), "verdict": verdict.to_dict()}, indent=2))
        return
    from trainer.tables import show

    console = Console()
    show(console, evaluation, verdict)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def loop(
    once: bool = typer.Option(False, "--once", help="One round if it is due, then exit."),
    processes: int = PROCESSES,
    model: str = MODEL,
    reward: str = REWARD,
    data_dir: Path = DATA_DIR,
    database: str = DATABASE,
) -> None:
    """Train, evaluate, judge and promote whenever enough new groups are there.

    A first Ctrl-C or SIGTERM waits for the stage at work; a second one ends at once. Either way the round is gone on
    with at the next start.
    """
    settings = _settings(model, reward, data_dir, database, processes)
    asyncio.run(_loop(settings, once))


async def _loop(settings: Settings, once: bool) -> None:
    from trainer.loop import Loop
    from trainer.tables import show_version
    from trainer.workshop import open_workshop

    console = Console(stderr=True)
    stop = asyncio.Event()
    _stop_on_signals(stop, console)
    async with open_workshop(settings) as workshop:
        daemon = Loop(workshop)
        due = await daemon.due()
        console.print(f"{due.groups} new clean groups of {due.champion}; a round needs {due.needed}", highlight=False)
        if not once:
            await daemon.run(stop)
        elif version := await daemon.once(stop):
            show_version(Console(), version)
        else:
            console.print("no round was due" if not stop.is_set() else "stopped; the round goes on at the next start")


def _stop_on_signals(stop: asyncio.Event, console: Console) -> None:
    running = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        console.print("stopping after the stage at work; once more to end at once")
        _end_at_once_on_signals()

    for number in (signal.SIGINT, signal.SIGTERM):
        running.add_signal_handler(number, first)


def _end_at_once_on_signals() -> None:
    """Let the system end the process. Nothing is lost but the steps since the last checkpoint, while Python would wait
    for the thread that trains."""
    running = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        running.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
