"""Starts a training in this process, or in several processes through a launcher.

Worker processes only train. They read their job from the run directory and leave the result there. The lease, the
database and the registry stay with the process that launched them.
"""

import asyncio
import os
import shlex
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from bonbon.errors import BonbonError, UserError
from bonbon.pairs.reading.snapshot import Snapshot
from bonbon.registry.version_records import Version
from bonbon.settings import Settings, TrainSettings
from trainer.training.failure import Failure

if TYPE_CHECKING:
    from trainer.training.train import TrainingResult

JOB, OUTCOME = "job.json", "outcome.json"


@dataclass(frozen=True, slots=True)
class Job:
    """The arguments of `trainer.training.train.train`, stored in the run directory."""

    model: str
    train: TrainSettings
    snapshot: Path
    base: Path
    n: int
    start: Version | None
    draws: bool
    progress: bool


async def run_training(
    settings: Settings,
    snapshot: Snapshot,
    run_dir: Path,
    *,
    base: Path,
    start: Version | None,
    draws: bool,
    progress: bool,
) -> "TrainingResult":
    """Runs `trainer.training.train.train` in `train.processes` processes, or in those that `train.launcher` starts.

    The worker processes end with this process, however it ends. The run then continues from its last checkpoint.

    Raises:
        UserError, BonbonError: The error that `train` raised, or a worker process died.
    """
    from trainer.training.train import train

    config = settings.train
    if config.processes == 1 and not config.launcher:
        # In a thread, so that the lease is renewed meanwhile and torch is not started a second time.
        return await asyncio.to_thread(
            train,
            settings,
            snapshot,
            run_dir,
            base=base,
            n=settings.n,
            start=start,
            draws=draws,
            progress=progress,
        )
    command = [*_launcher(config), "-m", "trainer.training.worker", str(run_dir), "--owned"]
    job = Job(settings.model, config, snapshot.path.absolute(), base, settings.n, start, draws, progress)
    (run_dir / OUTCOME).unlink(missing_ok=True)
    (run_dir / JOB).write_bytes(TypeAdapter(Job).dump_json(job, indent=2))
    try:
        # In a session of its own, so that Ctrl-C reaches this process only, which may finish the stage first.
        # PYTHONSAFEPATH: a user's own `trainer.py` in the working directory must not be taken for this package.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, start_new_session=True, env={**os.environ, "PYTHONSAFEPATH": "1"}
        )
    except OSError as error:
        raise UserError(
            f"train.launcher = {config.launcher!r} cannot be started: {error}", param="train.launcher"
        ) from error
    try:
        status = await process.wait()
    finally:
        await _end(process)
    return _outcome(run_dir, status, shlex.join(command))


def _launcher(config: TrainSettings) -> list[str]:
    if config.launcher:
        return shlex.split(config.launcher)
    import torch

    if torch.cuda.is_available() and config.processes > torch.cuda.device_count():
        raise UserError(
            f"train.processes = {config.processes} is more than this machine's {torch.cuda.device_count()} GPUs: "
            "lower it, or set train.launcher to one that uses more machines",
            param="train.processes",
        )
    run = [sys.executable, "-m", "torch.distributed.run"]
    return [*run, "--standalone", f"--nproc-per-node={config.processes}"]


async def _end(process: Process) -> None:
    """Closes the workers' standard input, which ends them, and waits for the launcher."""
    if process.returncode is None:
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        await process.wait()


def _outcome(run_dir: Path, status: int, command: str) -> "TrainingResult":
    from trainer.training.train import TrainingResult

    try:
        outcome = (run_dir / OUTCOME).read_bytes()
    except FileNotFoundError:
        raise BonbonError(
            f"the training processes ended with status {status} and left no result; their messages are above "
            f"(command: {command})"
        ) from None
    outcomes: TypeAdapter[TrainingResult | Failure] = TypeAdapter(TrainingResult | Failure)
    result = outcomes.validate_json(outcome)
    if isinstance(result, Failure):
        raise result.error()
    return result
