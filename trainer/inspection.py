"""Measures a registered version or a run directory again, on demand."""

import asyncio
import shutil
from pathlib import Path
from typing import NamedTuple

from bonbon.engines.engine import VersionKind
from bonbon.errors import UserError
from bonbon.pairs.reading.snapshot import Fractions, Snapshot, take_snapshot
from bonbon.registry.next_round import started_from
from bonbon.registry.version_records import Version
from trainer.context import RunContext
from trainer.evaluation.evaluation import FILE, Evaluation
from trainer.evaluation.gate import Verdict, judge
from trainer.reports.report import write_report
from trainer.rounds import Round
from trainer.run_directory import PLAN, REGISTERED


class Inspection(NamedTuple):
    """A new measurement, the gate's verdict on it (which changes nothing), and the path of the report."""

    evaluation: Evaluation
    verdict: Verdict
    report: Path


async def inspect(context: RunContext, target: str) -> Inspection:
    """Measures `target`, a run directory or a version's name. The evaluation of a registered version is stored with it.

    Raises:
        UserError: `target` is neither, or the run's training has not finished.
    """
    if (Path(target) / PLAN).exists():
        round_ = Round.open(context, Path(target).absolute())
        if not (round_.directory / "output").is_dir():
            raise UserError(f"the training in {target} has not finished: bonbon train --resume --run {target}")
        if (round_.directory / REGISTERED).exists():
            return await _inspect_version(context, await round_.register())
        (round_.directory / FILE).unlink(missing_ok=True)
        return await _judged(context, await round_.evaluate(), round_.directory)
    return await _inspect_version(context, await context.registry.get(target))


async def _inspect_version(context: RunContext, version: Version) -> Inspection:
    await context.registry.verify(version.name)
    directory = _run_of(context, version) or context.settings.runs_dir / f"evaluate-{version.name}"
    snapshot = await _snapshot(context, version, directory)
    evaluation = await context.evaluate(version.files, snapshot, served=await _served_beside(context, version))
    evaluation.save(directory)
    if version.kind is not VersionKind.BASE:
        await context.registry.record_evaluation(version.name, evaluation.to_dict())
    return await _judged(context, evaluation, directory)


def _run_of(context: RunContext, version: Version) -> Path | None:
    """Returns the directory of the run that trained the version, or None when it no longer exists.

    Earlier releases recorded an absolute path, which may point into another copy of the data directory. The run is
    therefore looked up by name in this data directory.
    """
    recorded = version.training.get("run")
    if recorded is None:
        return None
    path = Path(recorded)
    if path.is_absolute() and path.parent.name == context.settings.runs_dir.name:
        path = context.settings.runs_dir / path.name
    directory = context.registry.data_dir / path
    return directory if (directory / PLAN).exists() else None


async def _snapshot(context: RunContext, version: Version, directory: Path) -> Snapshot:
    """Returns the snapshot the version was trained on, or a new one; the test prompts depend on the prompts alone."""
    if (directory / PLAN).exists():
        return await Round.open(context, directory).snapshot()
    taken = directory / "snapshot"
    shutil.rmtree(taken, ignore_errors=True)
    return await take_snapshot(
        context.database,
        taken,
        version=started_from(version.training) or context.base.name,
        fractions=Fractions(
            test=version.training.get("held_out_fraction", context.settings.train.held_out_fraction),
            validation=version.training.get("validation_fraction", context.settings.train.validation_fraction),
        ),
        tenants=version.training.get("settings", {}).get("tenants", context.settings.train.tenants),
    )


async def _served_beside(context: RunContext, version: Version) -> str | None:
    """Returns the version that answers requests.

    Returns None when that is the version itself, which is then compared with best-of-n of the base.
    """
    champion = await context.registry.champion()
    return None if champion == version.name else champion


async def _judged(context: RunContext, evaluation: Evaluation, directory: Path) -> Inspection:
    verdict = judge(evaluation, context.settings.gate)
    report = await asyncio.to_thread(write_report, directory, context.settings.gate, verdict=verdict)
    return Inspection(evaluation, verdict, report)
