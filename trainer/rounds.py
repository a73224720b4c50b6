"""Runs one round of training: a run directory and the stages that fill it.

Every stage writes a result file atomically and does nothing when the file exists. An interrupted round therefore
continues at the stage it had reached, also in another process.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import structlog

from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.errors import Conflict, UserError
from bonbon.ids import time_ordered_id
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.newest_reward import newest_reward_of
from bonbon.pairs.reading.reader import RewardKey
from bonbon.pairs.reading.snapshot import GROUPS, Fractions, Snapshot, Split, read_snapshot, take_snapshot
from bonbon.pairs.rescoring.rescore import started
from bonbon.registry.round_progress import NOT_PROMOTED, PROMOTED, REFUSED, RoundStage
from bonbon.registry.version_paths import stored_path
from bonbon.registry.version_records import Version, VersionState
from bonbon.rewards import build_reward
from bonbon.settings import Settings, TrainSettings
from trainer.context import RunContext
from trainer.drawing import Drawing, refuse_other_reward, why_not_drawn
from trainer.evaluation.evaluation import FILE, Evaluation
from trainer.evaluation.gate import Verdict, judge
from trainer.reports.report import write_report
from trainer.reports.signatures import NAMES, signatures
from trainer.rescoring import rescore_older
from trainer.result_files import read_json, write_json
from trainer.round_progress import ProgressReporter
from trainer.run_directory import FAILED, FINISHED, PLAN, REGISTERED, RUN, TRAINING, is_unfinished
from trainer.training.launch import run_training
from trainer.training.metrics import MetricsLog, read_metrics
from trainer.training.stages.draws import DrawBox

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """The plan of a round.

    Training starts from the version `start`. `champion` is the version that answered when the round began, None before
    any promotion. `snapshot` is an existing snapshot directory to use instead of taking a new one.
    """

    id: str
    start: str
    champion: str | None
    test_fraction: float
    validation_fraction: float
    created: str
    snapshot: str | None = None

    @property
    def policy(self) -> str:
        """The name of the trained policy until it is registered. No version has or will have this name."""
        return f"round-{self.id}"


class Round:
    """A round in its directory. Call its stages in order; each one is idempotent."""

    def __init__(self, context: RunContext, directory: Path, plan: RoundPlan) -> None:
        self.context, self.directory, self.plan = context, directory, plan
        self.reporter = ProgressReporter(
            context.database, plan.id, directory, plan.start, context.settings.train.epochs
        )
        self._snapshot: Snapshot | None = None

    @classmethod
    async def create(
        cls, context: RunContext, directory: Path, *, start: str | None = None, snapshot: Path | None = None
    ) -> "Round":
        """Plans a round in a new directory. By default it starts from the champion.

        Raises:
            UserError: The directory already holds a round, start and snapshot belong to different versions, or training
                cannot continue from the start with these settings.
            UnknownVersion: The version to start from does not exist.
        """
        if (directory / PLAN).exists():
            raise UserError(f"{directory} already holds a run: continue it with --resume, or name another directory")
        if snapshot is not None:
            snapshot = snapshot.absolute()
            start = _start_of(read_snapshot(snapshot), start)
        version = await context.registry.get(start) if start else await context.champion()
        await context.check_training(version)
        # Prompts that an ancestor held out must not be trained on, and prompts it was trained on must not be measured
        # on.
        inherited, train = version.training, context.settings.train
        plan = RoundPlan(
            id=time_ordered_id(),
            start=version.name,
            champion=await context.registry.champion(),
            test_fraction=min(inherited.get("held_out_fraction", 1.0), train.held_out_fraction),
            validation_fraction=min(inherited.get("validation_fraction", 1.0), train.validation_fraction),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            snapshot=str(snapshot) if snapshot else None,
        )
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / PLAN, asdict(plan))
        return cls(context, directory, plan)

    @classmethod
    def open(cls, context: RunContext, directory: Path) -> "Round":
        """Opens the round in `directory`. Raises UserError when there is none."""
        plan = read_json(directory / PLAN)
        if plan is None:
            raise UserError(f"{directory} holds no run; `bonbon train` creates one")
        return cls(context, directory, RoundPlan(**plan))

    @property
    def unfinished(self) -> bool:
        """Whether stages are left to do."""
        return is_unfinished(self.directory)

    @property
    def erased(self) -> bool:
        """Whether the snapshot's groups were deleted because groups of it were deleted from the log."""
        own = self.directory / "snapshot"
        registered = (self.directory / REGISTERED).exists()
        return self.plan.snapshot is None and own.is_dir() and not (own / GROUPS).exists() and not registered

    async def snapshot(self) -> Snapshot:
        """Takes the snapshot of the groups drawn from the base and from the version that training starts from."""
        if self._snapshot is None:
            self._snapshot = await self._take_snapshot()
        return self._snapshot

    async def train(self) -> dict[str, Any]:
        """Trains on the snapshot and returns kind, steps, groups, metrics and seconds."""
        if done := read_json(self.directory / TRAINING):
            return done
        snapshot, context = await self.snapshot(), self.context
        start = perf_counter()
        async with self.reporter.training(), self._drawing(snapshot) as draws:
            result = await run_training(
                await self._training_settings(),
                snapshot,
                self.directory,
                base=context.base.directory,
                start=await context.registry.get(self.plan.start),
                draws=draws,
                progress=context.progress,
            )
        trained = {
            "kind": str(result.kind),
            "steps": result.steps,
            "groups": result.groups,
            "metrics": result.metrics,
            "seconds": perf_counter() - start,
        }
        write_json(self.directory / TRAINING, trained)
        return trained

    async def evaluate(self) -> Evaluation:
        """Measures the trained version on test prompts."""
        if (self.directory / FILE).exists():
            return Evaluation.load(self.directory)
        kind = VersionKind((await self.train())["kind"])
        await self.reporter.report(RoundStage.EVALUATING)
        files = VersionFiles(self.plan.policy, kind, self.directory / "output")
        evaluation = await self.context.evaluate(
            files, await self.snapshot(), served=self.plan.champion, temporary=True
        )
        evaluation.save(self.directory)
        self._report_signatures(evaluation)
        return evaluation

    async def register(self) -> Version:
        """Registers the version under its name, approved or refused by the gate."""
        registry = self.context.registry
        if done := read_json(self.directory / REGISTERED):
            return await registry.get(done["version"])
        evaluation, snapshot = await self.evaluate(), await self.snapshot()
        if self.erased:
            raise UserError("groups that the version was trained on were deleted from the log")
        version = await self._registered_before() or await registry.register(
            base=self.context.base.name,
            parent=self.plan.start,
            kind=VersionKind((await self.train())["kind"]),
            directory=self.directory / "output",
            training=await self._training_record(snapshot, evaluation),
        )
        evaluation = replace(evaluation, version=version.name)
        verdict = judge(evaluation, self.context.settings.gate)
        if version.state is VersionState.REGISTERED:
            if not version.evaluation:  # a process killed after registering may have recorded it
                await registry.record_evaluation(version.name, evaluation.to_dict())
            decide = registry.approve if verdict.passed else registry.refuse
            await decide(version.name, verdict.to_dict())
        evaluation.save(self.directory)
        await self.report(verdict, version.name)
        write_json(self.directory / REGISTERED, {"version": version.name, "passed": verdict.passed})
        log.info("version registered", version=version.name, gate="passed" if verdict.passed else "refused it")
        return await registry.get(version.name)

    async def promote(self, *, actor: str = "trainer") -> Version:
        """Promotes the version if the gate approved it and the champion has not changed since the round began."""
        version = await self.register()
        if not _passed(version):
            return await self._finish(version, REFUSED)
        # A killed process may have promoted the version already, and the operator who replaced it since had a reason.
        if version.state is VersionState.RETIRED:
            return await self._finish(version, "it was promoted, and another version has replaced it since")
        try:
            if version.state is not VersionState.PROMOTED:
                version = await self.context.registry.promote(version.name, expected=self.plan.champion, actor=actor)
        except Conflict as conflict:
            log.warning("not promoted", version=version.name, reason=str(conflict))
            return await self._finish(version, str(conflict))
        log.info("promoted", version=version.name)
        return await self._finish(version, PROMOTED)

    async def leave(self) -> Version:
        """Finishes the round without promoting; `bonbon models promote` can promote the version later."""
        version = await self.register()
        return await self._finish(version, NOT_PROMOTED if _passed(version) else REFUSED)

    async def report(self, verdict: Verdict | None = None, version: str | None = None) -> Path:
        """Writes the report of the results so far. `register` writes it as well."""
        gate = self.context.settings.gate
        return await asyncio.to_thread(write_report, self.directory, gate, verdict=verdict, version=version)

    async def fail(self, error: Exception) -> None:
        """Closes the round, because its training data or settings cannot be used."""
        write_json(self.directory / FAILED, {"error": str(error), "time": datetime.now(UTC).isoformat()})
        await self.reporter.report(RoundStage.FAILED, outcome=str(error))

    async def close_erased(self) -> None:
        """Closes an `erased` round and deletes what it trained from the groups."""
        await self.fail(
            UserError("groups that it was trained on were deleted from the log; the next round leaves them out")
        )
        for name in ("checkpoints", "draws", "output"):
            await asyncio.to_thread(shutil.rmtree, self.directory / name, ignore_errors=True)
        log.warning("round closed: groups that it was trained on were deleted", run=str(self.directory))

    @asynccontextmanager
    async def _drawing(self, snapshot: Snapshot) -> AsyncIterator[bool]:
        """Fulfils the training's orders for draws inside the block if that is possible. Yields whether it is.

        Raises:
            UserError: `train.refine` is "on", and drawing is not possible or `train.refine_tokens` are too few, or
                another reward has scored the groups.
            RewardError: The reward fails to score.
        """
        context = self.context
        settings = context.settings
        if problem := why_not_drawn(settings, snapshot):
            if settings.train.refine == "on":
                raise UserError(f"train.refine = 'on', but {problem}", param="train.refine")
            log.warning("training without draws of the policy", reason=problem)
            yield False
            return
        if settings.train.refine == "on" and not (self.directory / RUN).exists():
            await asyncio.to_thread(_refuse_too_few_tokens, settings.train, snapshot)
        assert settings.reward is not None
        if self.plan.snapshot is not None:  # `_take_snapshot` has not checked it
            scored_by = RewardKey(snapshot.reward_name, snapshot.reward_version)
            async with started(build_reward(settings.reward), expected=scored_by) as (_, key):
                refuse_other_reward(key, scored_by)
        pair_log = PairLog(context.database)
        await pair_log.start()
        try:
            drawing = Drawing(
                context.build_engine,
                build_reward(settings.reward),
                snapshot,
                DrawBox(self.directory),
                name=self.plan.policy,
                pair_log=pair_log,
                concurrency=settings.train.draws_in_flight,
            )
            async with drawing.in_background():
                yield True
        finally:
            await pair_log.stop()

    async def _take_snapshot(self) -> Snapshot:
        plan = self.plan
        directory = Path(plan.snapshot) if plan.snapshot is not None else self.directory / "snapshot"
        if directory.exists():
            return await asyncio.to_thread(read_snapshot, directory)
        await self.reporter.report(RoundStage.SNAPSHOT)
        database, tenants = self.context.database, self.context.settings.train.tenants
        reward = await newest_reward_of(database, (self.context.base.name, plan.start), tenants=tenants)
        if reward is not None:
            await rescore_older(self.context, plan.start, reward)
        snapshot = await take_snapshot(
            database,
            directory,
            version=plan.start,
            fractions=Fractions(test=plan.test_fraction, validation=plan.validation_fraction),
            reward=reward,
            tenants=tenants,
        )
        log.info(
            "snapshot taken",
            training=snapshot.train_groups,
            validation=snapshot.validation_groups,
            test=snapshot.test_groups,
            start=plan.start,
        )
        return snapshot

    def _report_signatures(self, evaluation: Evaluation) -> None:
        """Reports the signatures to the log and to the run's metrics: 1 for a signature that was found, 0 otherwise."""
        metrics = read_metrics(self.directory)
        found = signatures(metrics, evaluation)
        for signature in found:
            log.warning(signature.name, seen=signature.seen, remedy=signature.remedy, run=str(self.directory))
        names = {signature.name for signature in found}
        with MetricsLog(self.directory, resume=metrics[-1]["step"]) as lines:
            told = {f"signature_{name}": float(name in names) for name in NAMES}
            lines.write(metrics[-1]["step"], metrics[-1]["epoch"], **told)

    async def _finish(self, version: Version, outcome: str) -> Version:
        write_json(self.directory / FINISHED, {"version": version.name, "outcome": outcome})
        await self.reporter.report(RoundStage.FINISHED, version=version.name, outcome=outcome)
        return version

    async def _registered_before(self) -> Version | None:
        """Returns the version if this round was interrupted between registering it and recording that."""
        versions = await self.context.registry.list()
        return next((version for version in versions if version.training.get("round") == self.plan.id), None)

    async def _training_settings(self) -> Settings:
        """Returns the settings of the training, with the choice that the run began with where they leave one open."""
        return await self.context.training_settings(read_json(self.directory / RUN))

    async def _training_record(self, snapshot: Snapshot, evaluation: Evaluation) -> dict[str, Any]:
        trained, plan = await self.train(), self.plan
        return {
            "round": plan.id,
            "run": stored_path(self.directory, self.context.registry.data_dir),
            "start": plan.start,
            "snapshot": snapshot.hash,
            "groups": snapshot.groups,
            **{f"{split}_groups": getattr(snapshot, f"{split}_groups") for split in Split},
            "first_group": snapshot.first_group,
            "last_group": snapshot.last_group,
            "held_out_fraction": plan.test_fraction,
            "validation_fraction": plan.validation_fraction,
            "ns": list(snapshot.ns),
            "temperatures": list(snapshot.temperatures),
            "reward": {"name": snapshot.reward_name, "version": snapshot.reward_version},
            "trained_groups": trained["groups"],
            "steps": trained["steps"],
            "metrics": trained["metrics"],
            "signatures": [asdict(found) for found in signatures(read_metrics(self.directory), evaluation)],
            "settings": (await self._training_settings()).train.model_dump(mode="json"),
            "seconds": {"train": trained["seconds"], "evaluate": evaluation.seconds},
        }


Stage = Callable[[], Awaitable[Any]]


def _refuse_too_few_tokens(config: TrainSettings, snapshot: Snapshot) -> None:
    """Refuses a token budget that allows no step, while the run can still be started with another one."""
    from trainer.data.groups import Groups
    from trainer.training.stages.refinement import too_few_tokens
    from trainer.training.stages.validation import validation_rows

    groups = Groups.read(snapshot.groups_file, base=snapshot.base)
    if problem := too_few_tokens(config, groups, validation_rows(groups, config.seed)):
        raise UserError(f"train.refine = 'on', but {problem}", param="train.refine_tokens")


def _passed(version: Version) -> bool:
    return version.verdict is not None and bool(version.verdict["passed"])


def stages(round_: Round, *, promote: bool) -> tuple[Stage, ...]:
    """Returns every stage of a round, in order."""
    last = round_.promote if promote else round_.leave
    return round_.snapshot, round_.train, round_.evaluate, round_.register, last


def new_directory(runs_dir: Path, prefix: str) -> Path:
    """Returns the name of a new directory; names sort by time."""
    stem, number = time.strftime(f"{prefix}-%Y%m%d-%H%M%S"), 1
    while (directory := runs_dir / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return directory


def _start_of(snapshot: Snapshot, start: str | None) -> str:
    if start is not None and start != snapshot.version:
        raise UserError(
            f"the snapshot was taken to start from {snapshot.version}, not from {start}; leave --version out"
        )
    return snapshot.version
