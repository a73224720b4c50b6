"""Measuring again, on demand, what is registered or lies in a run directory."""

import asyncio
import shutil
from pathlib import Path
from typing import NamedTuple

from bonbon.engines.engine import VersionKind
from bonbon.errors import UserError
from bonbon.pairs.reading.snapshot import Fractions, Snapshot, take_snapshot
from bonbon.registry.next_round import started_from
from bonbon.registry.version_records import Version
from trainer.context import Workshop
from trainer.evaluation.evaluation import FILE, Evaluation
from trainer.evaluation.gate import Verdict, judge
from trainer.reports.report import write_report
from trainer.rounds import Round
from trainer.run_directory import PLAN, REGISTERED


class Inspection(NamedTuple):
    """What was measured, what the gate says of it (nothing is decided by that), and where the report is."""

    evaluation: Evaluation
    verdict: Verdict
    report: Path


async def inspect(workshop: Workshop, target: str) -> Inspection:
    """Measure `target`: a run directory or a version's name. A registered version's evaluation is recorded with it.

    Raises:
        UserError: it is neither, or the run has not been trained to its end.
    """
    if (Path(target) / PLAN).exists():
        round_ = Round.open(workshop, Path(target).absolute())
        if not (round_.directory / "output").is_dir():
            raise UserError(f"{target} has not been trained to its end: bonbon train --resume --run {target}")
        if (round_.directory / REGISTERED).exists():
            return await _inspect_version(workshop, await round_.register())
        (round_.directory / FILE).unlink(missing_ok=True)
        return await _judged(workshop, await round_.evaluate(), round_.directory)
    return await _inspect_version(workshop, await workshop.registry.get(target))


async def _inspect_version(workshop: Workshop, version: Version) -> Inspection:
    await workshop.registry.verify(version.name)
    directory = _run_of(workshop, version) or workshop.settings.runs_dir / f"evaluate-{version.name}"
    snapshot = await _snapshot(workshop, version, directory)
    evaluation = await workshop.evaluate(version.files, snapshot, served=await _served_beside(workshop, version))
    evaluation.save(directory)
    if version.kind is not VersionKind.BASE:
        await workshop.registry.record_evaluation(version.name, evaluation.to_dict())
    return await _judged(workshop, evaluation, directory)


def _run_of(workshop: Workshop, version: Version) -> Path | None:
    """The directory of the run that trained the version; None where it is not here any more.

    Earlier releases recorded an absolute path. Of a run in the data directory it may lead into another copy of that
    directory, so the run is looked for by its name in this one.
    """
    recorded = version.training.get("run")
    if recorded is None:
        return None
    path = Path(recorded)
    if path.is_absolute() and path.parent.name == workshop.settings.runs_dir.name:
        path = workshop.settings.runs_dir / path.name
    directory = workshop.registry.data_dir / path
    return directory if (directory / PLAN).exists() else None


async def _snapshot(workshop: Workshop, version: Version, directory: Path) -> Snapshot:
    """The snapshot the version was trained on, or else a new one: the test prompts follow from the prompts alone."""
    if (directory / PLAN).exists():
        return await Round.open(workshop, directory).snapshot()
    taken = directory / "snapshot"
    shutil.rmtree(taken, ignore_errors=True)
    return await take_snapshot(
        workshop.database,
        taken,
        version=started_from(version.training) or workshop.base.name,
        fractions=Fractions(
            test=version.training.get("held_out_fraction", workshop.settings.train.held_out_fraction),
            validation=version.training.get("validation_fraction", workshop.settings.train.validation_fraction),
        ),
        tenants=version.training.get("settings", {}).get("tenants", workshop.settings.train.tenants),
    )


async def _served_beside(workshop: Workshop, version: Version) -> str | None:
    """What answers requests, unless that is the version itself: then it is compared with best-of-n of the base."""
    champion = await workshop.registry.champion()
    return None if champion == version.name else champion


async def _judged(workshop: Workshop, evaluation: Evaluation, directory: Path) -> Inspection:
    verdict = judge(evaluation, workshop.settings.gate)
    report = await asyncio.to_thread(write_report, directory, workshop.settings.gate, verdict=verdict)
    return Inspection(evaluation, verdict, report)
