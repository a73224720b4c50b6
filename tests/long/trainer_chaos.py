"""Kills the trainer in every stage of a round, again and again; the round's result must not depend on it.

python -m tests.long.trainer_chaos --kills 100
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import Progress

from bonbon.errors import Conflict
from bonbon.registry.leases import acquire, release
from bonbon.registry.registry import Registry
from bonbon.settings import Settings
from bonbon.store.database import open_database
from tests.support.data.loop_world import answer
from tests.support.data.sampled_groups import make_base
from trainer.loop import LEASE

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.long.trainer_chaos_imports"])
STAGES = (
    "snapshot",
    "probe",
    "training",
    "interpolation",
    "refinement",
    "saving",
    "evaluation",
    "registration",
    "promotion",
)
KILLS_A_ROUND = 10
"""The most kills that one round has to survive before it runs to its end."""
FINISHED = 0


@dataclass(slots=True)
class Chaos:
    """`kills` by stage, the number of `rounds` that ran to their end after some kills, and the differences in their
    results.
    """

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    rounds: int = 0
    differences: list[str] = field(default_factory=list)


class Trainer:
    """A trainer process that runs one round on a copy of a data directory.

    Args:
        directory: Holds the data directory `data`, its copies and the trainer's log.
    """

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.directory, self.settings = directory, settings
        self.data = settings.data_dir

    def keep(self, name: str) -> None:
        """Saves a copy of the data directory."""
        shutil.copytree(self.data, self.directory / name)

    def restore(self, name: str) -> None:
        """Restores a copy of the data directory."""
        shutil.rmtree(self.data)
        shutil.copytree(self.directory / name, self.data)

    def run(self, stage: str | None = None, delay: float = 0.0) -> bool:
        """Runs the trainer and returns whether the round ended. With a `stage`, SIGKILL follows `delay` seconds into
        it.
        """
        process = self.start(stage, delay)
        process.join()
        if process.exitcode not in (FINISHED, -signal.SIGKILL):
            raise RuntimeError((self.directory / "trainer.log").read_text()[-3000:])
        if process.exitcode == FINISHED:
            return True
        with sqlite3.connect(self.data / "bonbon.db") as connection:  # frees the lease at once
            connection.execute("UPDATE leases SET holder = ''")
        return False

    def start(self, stage: str | None = None, delay: float = 0.0) -> Any:
        """Starts the process."""
        process = CONTEXT.Process(target=_work, args=(self.settings, self.directory, stage, delay), daemon=True)
        process.start()
        return process

    def durations(self) -> dict[str, float]:
        """Returns the seconds that each stage of the last complete round took."""
        lines = (self.directory / "durations").read_text().splitlines()
        return {stage: float(seconds) for stage, seconds in (line.split() for line in lines)}

    async def outcome(self) -> dict[str, Any]:
        """Returns the round's results, without times."""
        async with open_database(self.settings.database) as database:
            registry = Registry(database, self.settings.versions_dir)
            versions = await registry.list()
            events = await registry.history(100)
            # One that ended has given its lease back: this raises otherwise.
            await release(database, await acquire(database, LEASE, "chaos", 1.0))
        runs = self.settings.runs_dir
        return {
            "versions": {
                version.name: (version.digest, version.state, version.verdict, _untimed(version.evaluation))
                for version in versions
            },
            "champion": await _champion(self.settings),
            "events": sorted((event.kind, event.version) for event in events),
            "outcomes": sorted(path.read_text() for path in runs.glob("round-*/finished.json")),
            "version files": sorted(path.name for path in self.settings.versions_dir.iterdir()),
            "left over": sorted(str(path.relative_to(runs)) for path in runs.rglob("*.partial")),
        }


async def chaos(
    directory: Path, kills: int, *, stages: Sequence[str] = STAGES, seed: int = 0, progress: bool = False
) -> Chaos:
    """Kills a trainer `kills` times in each of the stages, and compares every round with an undisturbed one."""
    rng, result = random.Random(seed), Chaos()
    trainer, expected, durations = await _undisturbed(directory)
    with Progress(console=Console(stderr=True), disable=not progress) as bars:
        for stage in sorted(stages, key=STAGES.index):  # each begins where the one before it left the round
            task = bars.add_task(stage, total=kills)
            if await asyncio.to_thread(trainer.run, stage):
                raise RuntimeError(f"the round has no stage {stage}")
            trainer.keep(stage)
            while result.kills[stage] < kills:
                trainer.restore(stage)
                for _ in range(KILLS_A_ROUND):
                    if await asyncio.to_thread(trainer.run, stage, rng.random() * durations[stage]):
                        break
                    result.kills[stage] += 1
                    bars.advance(task)
                    if result.kills[stage] == kills:
                        break
                await _end(trainer, f"killed in {stage}", expected, result)
            trainer.restore(stage)
            if progress:  # a run of hours that is cut off has said something
                bars.console.print(f"{stage}: {kills} kills, {result.differences or 'no difference'} so far")
    return result


async def chaos_of_one_round(directory: Path, *, seed: int = 0) -> Chaos:
    """Kills the trainer of one round once in each stage, and compares the round with an undisturbed one."""
    rng, result = random.Random(seed), Chaos()
    trainer, expected, durations = await _undisturbed(directory)
    for stage in STAGES:
        # In the stage's first half: on a machine that is busier now, it would not be over later, either.
        if await asyncio.to_thread(trainer.run, stage, rng.random() * durations[stage] / 2):
            raise RuntimeError(f"the round was over before it was killed in {stage}")
        result.kills[stage] += 1
    await _end(trainer, "killed in each stage", expected, result)
    return result


async def _undisturbed(directory: Path) -> tuple[Trainer, dict[str, Any], dict[str, float]]:
    """Returns a trainer after one round, the results of an undisturbed next round, and the durations of its stages."""
    settings = chaos_settings(make_base(directory / "base"), directory / "data")
    await answer(settings, 200)
    trainer = Trainer(directory, settings)
    trainer.keep("logged")
    if not await asyncio.to_thread(trainer.run):
        raise RuntimeError("the undisturbed round was killed")
    expected, durations = await trainer.outcome(), trainer.durations()
    trainer.restore("logged")
    return trainer, expected, durations


async def _end(trainer: Trainer, what: str, expected: dict[str, Any], result: Chaos) -> None:
    """Runs the round to its end and records in what it differs."""
    await asyncio.to_thread(trainer.run)
    found = await trainer.outcome()
    result.rounds += 1
    result.differences += [
        f"{what}: {name} {found[name]!r}, undisturbed {expected[name]!r}"
        for name in expected
        if found[name] != expected[name]
    ]


def chaos_settings(base: Path, data_dir: Path) -> Settings:
    """Returns settings of a short round that goes through every stage, including promotion."""
    return Settings(
        model=str(base),
        data_dir=data_dir,
        n=4,
        reward="python:tests.support.data.sampled_groups:score",
        engine_options={"threads": 1},
        train={
            "epochs": 1,
            "batch_size": 16,
            "micro_batch_size": 16,
            "min_pairs": 32,
            "held_out_fraction": 0.2,
            "validation_draws": 32,
            "refine_tokens": 6000,
            "threads": 1,
        },
        evaluate={"prompts": 20},
        # Nothing keeps it from promotion: what is measured is whether the round is the same, not whether it is good.
        gate={
            "min_win_rate": 0,
            "max_p_value": 1,
            "min_gain": -100,
            "margin": 0.49,
            "min_saved": 0,
            "max_truncated": 1,
            "max_kl_factor": 100,
            "min_distinct_ratio": 0,
            "length_ratio": (0, 100),
        },
        loop={"min_groups": 150, "poll": 0.05, "lease_seconds": 60},
    )


async def _champion(settings: Settings) -> str | None:
    async with open_database(settings.database) as database:
        return await Registry(database, settings.versions_dir).champion()


def _untimed(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in evaluation.items() if name not in ("seconds", "tokens_per_second")}


def _work(settings: Settings, directory: Path, stage: str | None, delay: float) -> None:
    from bonbon.observability.logs import configure_logs
    from trainer.context import open_context
    from trainer.loop import Loop

    with (directory / "trainer.log").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    configure_logs()
    times: dict[str, float] = {}
    _watch(stage, delay, times)

    async def round_() -> None:
        async with open_context(settings, progress=False) as context:
            while not list(settings.runs_dir.glob("round-*/finished.json")):
                with suppress(Conflict):  # another trainer is at it
                    await Loop(context).once()
                await asyncio.sleep(0.05)

    asyncio.run(round_())
    (directory / "durations").write_text("".join(f"{name} {seconds}\n" for name, seconds in times.items()))


def _watch(killed_in: str | None, delay: float, times: dict[str, float]) -> None:
    """Times each stage, and kills the process `delay` seconds after `killed_in` begins."""
    from bonbon.registry.registry import Registry
    from trainer.context import RunContext
    from trainer.rounds import Round
    from trainer.training import run as training
    from trainer.training.learning.learner import Learner
    from trainer.training.stages.offline import Offline
    from trainer.training.stages.refinement import Refinement

    places: dict[str, tuple[Any, str]] = {
        "snapshot": (Round, "snapshot"),
        "probe": (Offline, "rate"),
        "training": (Offline, "run"),
        "interpolation": (training, "interpolate"),
        "refinement": (Refinement, "run"),
        "saving": (Learner, "save"),
        "evaluation": (RunContext, "evaluate"),
        "registration": (Registry, "register"),
        "promotion": (Registry, "promote"),
    }
    for stage, (owner, name) in places.items():
        begun = _begins(delay if stage == killed_in else None)
        setattr(owner, name, _timed(getattr(owner, name), stage, begun, times))


def _begins(delay: float | None) -> Callable[[], None]:
    def begun() -> None:
        if delay is None:
            return
        if not delay:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    return begun


def _timed(function: Any, stage: str, begun: Callable[[], None], times: dict[str, float]) -> Any:
    if asyncio.iscoroutinefunction(function):

        @wraps(function)
        async def timed_async(*arguments: Any, **named: Any) -> Any:
            begun()
            start = perf_counter()
            result = await function(*arguments, **named)
            times.setdefault(stage, perf_counter() - start)
            return result

        return timed_async

    @wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        begun()
        start = perf_counter()
        result = function(*arguments, **named)
        times.setdefault(stage, perf_counter() - start)
        return result

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stage", action="append", choices=STAGES, help="Only in this stage; may be repeated.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        stages = arguments.stage or STAGES
        run = chaos(Path(directory), arguments.kills, stages=stages, seed=arguments.seed, progress=True)
        result = asyncio.run(run)
    print(f"{sum(result.kills.values())} kills in {time.perf_counter() - start:.0f} s, of which", end=" ")
    print(", ".join(f"{kills} in {stage}" for stage, kills in result.kills.items()))
    print(f"{result.rounds} rounds went on to their end, {len(result.differences)} differences from an undisturbed one")
    for difference in result.differences:
        print(difference)
    if result.differences:
        sys.exit(1)


if __name__ == "__main__":
    main()
