"""What every run works with, wired together in one place."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bonbon.database import Database, open_database
from bonbon.engines import build_engine
from bonbon.engines.base import Engine, VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.modelfiles import resolve_model, served_name
from bonbon.registry.records import Version
from bonbon.registry.registry import Registry
from bonbon.rewards import build_reward
from bonbon.settings import Settings
from trainer.evaluation.evaluation import Evaluation

if TYPE_CHECKING:
    from bonbon.pairs.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Workshop:
    """Settings, the pair log's database, the registry, and the base of everything that is trained.

    `settings.model` is the base's directory.
    """

    settings: Settings
    database: Database
    registry: Registry
    base: Version
    progress: bool = True

    async def champion(self) -> Version:
        """The version that answers now; the base before anything was promoted."""
        name = await self.registry.champion()
        return self.base if name is None else await self.registry.get(name)

    def n(self, snapshot: "Snapshot") -> int:
        """The n that a version trained on `snapshot` is measured against: the configured one, if groups have it."""
        return self.settings.n if self.settings.n in snapshot.ns else max(snapshot.ns)

    async def evaluate(self, version: VersionFiles, snapshot: "Snapshot", *, temporary: bool = False) -> Evaluation:
        """Measure `version` on the held-out prompts of `snapshot`, against the base and the snapshot's sampler.

        With `temporary`, nobody else draws from it under this name.

        Raises:
            UserError: no reward is configured, or there are too few held-out prompts.
            RewardError, EngineError: scoring or drawing failed.
        """
        from trainer.data.held_out import read_held_out
        from trainer.evaluation.evaluate import evaluate
        from trainer.evaluation.kl import KL

        settings = self.settings
        if settings.reward is None:
            raise UserError(
                "no reward is set: evaluation needs the reward that scored the groups (BONBON_REWARD, or reward in "
                "bonbon.toml)",
                param="reward",
            )
        held_out = await asyncio.to_thread(read_held_out, snapshot)
        reference = await self.registry.get(snapshot.version)
        others = [self.base.files] if reference.kind is VersionKind.BASE else [self.base.files, reference.files]
        return await evaluate(
            engine=await asyncio.to_thread(self._engine),
            reward=build_reward(settings.reward),
            held_out_reward=build_reward(settings.held_out_reward) if settings.held_out_reward else None,
            divergence=KL(
                [*others, version],
                temperature=held_out.sampling.temperature,
                batch_size=settings.evaluate.batch_size,
                precision=settings.train.precision,
            ),
            prompts=held_out.prompts,
            version=version,
            reference=None if reference.kind is VersionKind.BASE else reference.files,
            n=self.n(snapshot),
            sampling=held_out.sampling,
            settings=settings.evaluate,
            seed=settings.train.seed,
            progress=self.progress,
            temporary=temporary,
        )

    def _engine(self) -> Engine:
        """What the evaluation draws with; building it may import a heavy library."""
        evaluate = self.settings.evaluate
        options = self.settings.engine_options | evaluate.engine_options
        settings = self.settings.model_copy(update={"engine_options": options})
        return build_engine(settings, base=self.base.name)


@asynccontextmanager
async def open_workshop(settings: Settings, *, progress: bool = True) -> AsyncIterator[Workshop]:
    """A workshop for `settings.model` or, when none is set, for the base of what is served; closed after the block.

    Raises:
        UserError: there is no model, or its files are not those that the registry knows.
    """
    settings.runs_dir.mkdir(parents=True, exist_ok=True)
    async with open_database(settings.database, timeouts=settings.database_timeouts) as database:
        registry = Registry(database, settings.versions_dir)
        base = await _base(settings, registry)
        settings = settings.model_copy(update={"model": str(base.directory), "revision": None})
        yield Workshop(settings, database, registry, base, progress)


async def _base(settings: Settings, registry: Registry) -> Version:
    if settings.model:
        directory = await asyncio.to_thread(resolve_model, settings.model, settings.revision)
        return await registry.register_base(served_name(settings.model), directory)
    champion = await registry.champion()
    if champion is None:
        raise UserError(
            "no model is set and nothing is served yet: set model (BONBON_MODEL, or model in bonbon.toml)",
            param="model",
        )
    return await registry.get((await registry.get(champion)).base)
