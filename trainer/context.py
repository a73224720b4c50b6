"""The settings, database and registry that every run uses, opened in one place."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bonbon.engines import build_engine
from bonbon.engines.engine import Engine, VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.files.model_files import resolve_model, served_name
from bonbon.pairs.reading.snapshot import Split
from bonbon.registry.registry import Registry
from bonbon.registry.version_paths import refuse_missing
from bonbon.registry.version_records import Version
from bonbon.rewards import build_reward
from bonbon.settings import ALL_LINEAR, Settings
from bonbon.store.database import Database, open_database
from trainer.evaluation.evaluation import Evaluation

if TYPE_CHECKING:
    from bonbon.pairs.reading.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class RunContext:
    """The settings, the pair log's database, the registry and the directory of the base model.

    `settings.model` is the base's directory.
    """

    settings: Settings
    database: Database
    registry: Registry
    base: Version
    progress: bool = True

    async def champion(self) -> Version:
        """Returns the version that answers now, which is the base before any promotion."""
        name = await self.registry.champion()
        return self.base if name is None else await self.registry.get(name)

    async def check_training(self, start: Version | None = None) -> None:
        """Raises UserError when training cannot continue from `start` (None: the base) with these settings.

        Called before anything is drawn for the training.
        """
        from trainer.training.learning.lora_targets import check_targets
        from trainer.training.start import check_start

        if self.settings.train.method == "lora":
            engine = await asyncio.to_thread(self.build_engine)
            unadaptable = await asyncio.to_thread(engine.unadaptable_layers)
            await asyncio.to_thread(check_targets, self.base.directory, self.settings.train, unadaptable)
        files = None if start is None else start.files
        await asyncio.to_thread(check_start, self.base.directory, files, self.settings.train)

    async def training_settings(self, recorded: Mapping[str, Any] | None = None) -> Settings:
        """Returns the settings with a choice of `train.lora_output_layer` where they leave it to the engine.

        Args:
            recorded: The record of the run if it has begun, which holds its choice. Runs of earlier releases never
                adapted the output layer.
        """
        train = self.settings.train
        if train.method != "lora" or train.lora_output_layer is not None:
            return self.settings
        if recorded is not None:
            chosen = bool(recorded["train"].get("lora_output_layer"))
        else:
            engine = await asyncio.to_thread(self.build_engine)
            chosen = train.lora_targets == ALL_LINEAR and engine.adapts_output_layer()
        train = train.model_copy(update={"lora_output_layer": chosen})
        return self.settings.model_copy(update={"train": train})

    async def evaluate(
        self, version: VersionFiles, snapshot: "Snapshot", *, served: str | None, temporary: bool = False
    ) -> Evaluation:
        """Measures `version` on the test prompts of `snapshot`, against the base and the version that answers requests.

        Args:
            served: The version that answers requests; None or the base for best-of-n of the base.
            temporary: The version is loaded under this name for the evaluation only.

        Raises:
            UserError: No reward is configured, or there are too few test prompts.
            RewardError, EngineError: Scoring or drawing failed.
        """
        from bonbon.engines.text.model_config import read_config
        from trainer.data.logged_prompts import logged_prompts
        from trainer.evaluation.evaluate import CONCURRENCY, Served, evaluate
        from trainer.evaluation.kl import KL

        settings = self.settings
        if settings.reward is None:
            raise UserError(
                "no reward is set: evaluation needs the reward that scored the groups (BONBON_REWARD, or reward in "
                "bonbon.toml)",
                param="reward",
            )
        champion = self.base if served is None else await self.registry.get(served)
        by_base = champion.kind is VersionKind.BASE
        k = settings.n if await self.registry.fell_back(champion.name) else settings.service.k or champion.k
        vocabulary = read_config(self.base.directory).vocab_size
        return await evaluate(
            engine=await asyncio.to_thread(self.build_engine),
            reward=build_reward(settings.reward),
            held_out_reward=build_reward(settings.held_out_reward) if settings.held_out_reward else None,
            divergence=KL(self.base.files, version, batch_size=settings.evaluate.batch_size),
            prompts=await asyncio.to_thread(logged_prompts, snapshot, Split.TEST, vocabulary=vocabulary),
            version=version,
            served=Served(None, settings.n) if by_base else Served(champion.files, k),
            n=settings.n,
            settings=settings.evaluate,
            seed=settings.train.seed,
            concurrency=min(CONCURRENCY, settings.train.draws_in_flight),
            progress=self.progress,
            temporary=temporary,
        )

    def build_engine(self) -> Engine:
        """Returns the engine for training and evaluation, not started. The call may import a heavy library."""
        evaluate = self.settings.evaluate
        options = self.settings.engine_options | evaluate.engine_options
        settings = self.settings.model_copy(update={"engine_options": options})
        return build_engine(settings, base=self.base.name)


@asynccontextmanager
async def open_context(settings: Settings, *, progress: bool = True) -> AsyncIterator[RunContext]:
    """Opens a context for `settings.model`, or for the base of the served version when no model is set.

    The context is closed after the block.

    Raises:
        UserError: No model is set or known, its files are missing, or they differ from those that are registered.
    """
    settings.runs_dir.mkdir(parents=True, exist_ok=True)
    async with open_database(settings.database, timeouts=settings.database_timeouts) as database:
        registry = Registry(database, settings.versions_dir)
        base = await _base(settings, registry)
        settings = settings.model_copy(update={"model": str(base.directory), "revision": None})
        yield RunContext(settings, database, registry, base, progress)


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
    base = await registry.get((await registry.get(champion)).base)
    refuse_missing(base)
    return base
