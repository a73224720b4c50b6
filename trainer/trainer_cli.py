"""The commands `bonbon train`, `bonbon evaluate`, `bonbon loop` and `bonbon distill`."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from bonbon.errors import UserError
from bonbon.extras import TRAINING, need
from bonbon.settings import Settings, load_settings

MODEL = typer.Option(None, help="The base model: a directory in Hugging Face format, or a hub name.")
REWARD = typer.Option(None, help="A reward model's directory or hub name, a URL, or kind:target.")
DATA_DIR = typer.Option(None, help="Directory of the registry's files, the training runs and the default database.")
PROCESSES = typer.Option(None, help="Number of training processes on this machine, one per GPU.")
DATABASE = typer.Option(None, help="SQLAlchemy URL of the pair log and registry.")


def train(
    version: str = typer.Option(None, help="The version to start from (default: the champion)."),
    run: Path = typer.Option(None, help="Run directory (default: a new one in data_dir/runs)."),
    resume: bool = typer.Option(False, "--resume", help="Continue the run in --run."),
    snapshot: Path = typer.Option(None, help="Train on this snapshot instead of taking a new one."),
    register: bool = typer.Option(False, "--register", help="Afterwards evaluate, gate and register the version."),
    promote: bool = typer.Option(False, "--promote", help="Afterwards promote the version if the gate passes it."),
    processes: int = PROCESSES,
    model: str = MODEL,
    reward: str = REWARD,
    data_dir: Path = DATA_DIR,
    database: str = DATABASE,
) -> None:
    """Train a version from logged groups.

    Settings without an option here come from the environment (BONBON_TRAIN__LEARNING_RATE, ...) or from bonbon.toml.
    """
    if resume and run is None:
        raise UserError("--resume needs --run, the directory of the run to continue", param="run")
    if resume and (version or snapshot):
        raise UserError("--resume keeps the version and snapshot of the run: leave --version and --snapshot out")
    settings = _settings(model, reward, data_dir, database, processes)
    asyncio.run(_train(settings, version, run, resume, snapshot, register or promote, promote))


def _settings(
    model: str | None,
    reward: str | None,
    data_dir: Path | None,
    database: str | None,
    processes: int | None = None,
    **others: Any,
) -> Settings:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        raise UserError(
            f"this process is one of {os.environ['WORLD_SIZE']} that a launcher started: start bonbon once, and let "
            "train.processes or train.launcher start the processes that train",
            param="train.launcher",
        )
    train = None if processes is None else {"processes": processes}
    settings = load_settings(
        model=model, reward=reward, data_dir=data_dir, database_url=database, train=train, **others
    )
    need("training", "train", *TRAINING)
    return settings


async def _train(
    settings: Settings,
    start: str | None,
    run: Path | None,
    resume: bool,
    snapshot: Path | None,
    register: bool,
    promote: bool,
) -> None:
    from trainer.context import open_context
    from trainer.disk_full import disk_full_errors
    from trainer.held_lease import HeldLease
    from trainer.loop import LEASE
    from trainer.reports.tables import show_version
    from trainer.rounds import Round, new_directory

    _end_at_once_on_signals()
    console = Console()
    async with (
        open_context(settings) as context,
        HeldLease(context.database, LEASE, settings.loop.lease_seconds, patient=True) as lease,
    ):
        if resume and run is not None:
            round_ = Round.open(context, run.absolute())
        else:
            directory = run.absolute() if run else new_directory(settings.runs_dir, "train")
            with disk_full_errors(directory):
                round_ = await Round.create(context, directory, start=start, snapshot=snapshot)
        with disk_full_errors(round_.directory):
            taken = await round_.snapshot()
            trained = await round_.train()
            console.print(f"trained {taken.version} on {trained['groups']} groups in {trained['steps']} steps")
            if register:
                await round_.evaluate()
                await lease.confirm()
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
    """Measure a version on held-out prompts, and print the gate's verdict."""
    settings = _settings(model, reward, data_dir, database)
    asyncio.run(_evaluate(settings, target, json_))


async def _evaluate(settings: Settings, target: str, as_json: bool) -> None:
    from trainer.context import open_context
    from trainer.inspection import inspect

    _end_at_once_on_signals()
    async with open_context(settings, progress=not as_json) as context:
        evaluation, verdict, report = await inspect(context, target)
    if as_json:
        typer.echo(json.dumps({"evaluation": evaluation.to_dict(), "verdict": verdict.to_dict()}, indent=2))
        return
    from trainer.reports.tables import show

    console = Console()
    show(console, evaluation, verdict)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def loop(
    once: bool = typer.Option(False, "--once", help="Train a round if there are enough groups, then exit."),
    now: bool = typer.Option(False, "--now", help="Train one round now in any case, then exit."),
    create_job: str = typer.Option(
        None,
        "--create-job",
        metavar="CRONJOB",
        help="On Kubernetes: if a round can start, make a Job that trains it from this CronJob, and exit.",
    ),
    processes: int = PROCESSES,
    model: str = MODEL,
    reward: str = REWARD,
    data_dir: Path = DATA_DIR,
    database: str = DATABASE,
) -> None:
    """Train, evaluate, gate and promote whenever a round is expected to lower the number of draws per answer.

    The first Ctrl-C or SIGTERM waits for the current stage; the second one ends at once. The next start continues the
    round in either case.
    """
    if create_job:
        if once or now:
            raise UserError(
                "--create-job trains nothing here: leave --once and --now to the command of the CronJob's template"
            )
        settings = load_settings(model=model, reward=reward, data_dir=data_dir, database_url=database)
        asyncio.run(_create_job(settings, create_job))
        return
    settings = _settings(model, reward, data_dir, database, processes)
    asyncio.run(_loop(settings, once, now))


async def _create_job(settings: Settings, cronjob: str) -> None:
    from trainer.kubernetes.cluster import Cluster
    from trainer.kubernetes.work import find_work

    cluster = Cluster.of_this_pod(os.environ)
    work = await find_work(settings)
    typer.echo(work.why)
    if work.is_ready:
        typer.echo(await cluster.create_job(cronjob))


async def _loop(settings: Settings, once: bool, now: bool) -> None:
    from trainer.context import open_context
    from trainer.loop import Loop
    from trainer.reports.tables import show_version

    console = Console(stderr=True)
    stop = asyncio.Event()
    _stop_on_signals(stop, console)
    async with open_context(settings) as context:
        daemon = Loop(context)
        upcoming = await daemon.next_round()
        console.print("A round begins now." if now else upcoming.waits_for, highlight=False, soft_wrap=True)
        if not once and not now:
            await daemon.run(stop)
        elif version := await daemon.once(stop, now=now, patient=True):
            show_version(Console(), version)
        else:
            console.print(
                "there was no round to run" if not stop.is_set() else "stopped; the round continues at the next start"
            )


def distill(
    prompts: Path = typer.Option(
        help="A file with one prompt per line, or .jsonl or .parquet with `prompt` or `messages`."
    ),
    out: Path = typer.Option(help="The output directory; an interrupted run continues in it."),
    n: int = typer.Option(None, min=2, help="Candidates per prompt (default: the setting n, 8)."),
    max_tokens: int = typer.Option(256, min=1, help="Longest candidate."),
    temperature: float = typer.Option(
        1.0, min=0.01, help="The sampling temperature; use the distilled model with the same one."
    ),
    plain: bool = typer.Option(False, "--plain", help="Continue the prompts as plain text instead of chat turns."),
    engine: str = typer.Option(None, help="Which engine draws (default: the setting engine, embedded)."),
    model: str = MODEL,
    reward: str = REWARD,
) -> None:
    """Distil a base model with a reward into a model and a report, without the service.

    The command draws, scores, trains, evaluates and gates. OUT gets the trained adapter or model (output/),
    report.html, evaluation.json and the scored groups (bonbon.db).
    """
    out = out.absolute()
    settings = _settings(model, reward, out, f"sqlite+aiosqlite:///{out / 'bonbon.db'}", n=n, engine=engine)
    for name in ("model", "reward"):
        if not getattr(settings, name):
            raise UserError(f"no {name} is set: pass --{name}, or set {name} in bonbon.toml", param=name)
    asyncio.run(_distill(settings, out, prompts, plain, max_tokens, temperature))


async def _distill(settings: Settings, out: Path, file: Path, plain: bool, max_tokens: int, temperature: float) -> None:
    from bonbon.engines.engine import Sampling
    from trainer.context import open_context
    from trainer.data.prompt_file import read_prompts
    from trainer.distill import distill
    from trainer.reports.tables import show_version

    _end_at_once_on_signals()
    prompts = await asyncio.to_thread(read_prompts, file, plain=plain)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=settings.train.seed)
    async with open_context(settings) as context:
        version = await distill(context, out, prompts, sampling)
    console = Console()
    show_version(console, version)
    for title, path in (("distilled", out / "output"), ("report", out / "report.html"), ("groups", out / "bonbon.db")):
        console.print(f"{title}: {path}", highlight=False, soft_wrap=True)


def _stop_on_signals(stop: asyncio.Event, console: Console) -> None:
    running = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        console.print("stopping after the current stage; press Ctrl-C again to end at once")
        _end_at_once_on_signals()

    for number in (signal.SIGINT, signal.SIGTERM):
        running.add_signal_handler(number, first)


def _end_at_once_on_signals() -> None:
    """Lets signals end the process immediately.

    Python would wait for the training thread. Only the steps since the last checkpoint are lost.
    """
    running = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        running.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
