"""Fulfils a training's orders for draws from its current policy; see `trainer.training.stages.draws`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from sqlalchemy import select

from bonbon.best_of_n import BestOfN
from bonbon.concurrency.gather import gather_or_cancel
from bonbon.engines.engine import Engine, VersionFiles, VersionKind
from bonbon.errors import PromptTooLong, RewardError, UserError
from bonbon.pairs.group_records import TRAINING, Group
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.reader import RewardKey
from bonbon.pairs.reading.snapshot import SCHEMA, Snapshot, snapshot_row
from bonbon.pairs.reading.training_groups import TrainingGroup
from bonbon.rewards.reward import Reward
from bonbon.rewards.scoring import OFFLINE_DEADLINE
from bonbon.settings import Settings
from bonbon.store.tables import groups
from trainer.data.logged_prompts import LoggedPrompt, logged_prompts
from trainer.training.stages.draws import DrawBox, DrawOrder

log = structlog.get_logger(__name__)

POLL = 0.02
"""Seconds between checks for a new order."""


MIN_VALIDATION_GROUPS = 8
"""The fewest validation groups on which fresh draws can tell policies apart."""


def why_not_drawn(settings: Settings, snapshot: Snapshot | None = None) -> str | None:
    """Returns why a training cannot draw and how to change that, or None when no reason is known.

    Args:
        snapshot: None if the groups have not been drawn yet. The settings alone then decide.
    """
    if settings.reward is None:
        return "no reward is configured to score the draws: set reward (BONBON_REWARD)"
    if settings.engine == "fake":
        return "the engine 'fake' cannot load a trained policy: set engine to another one"
    if settings.train.method == "full":
        if settings.engine == "remote":
            return (
                "a fleet of servers loads only adapters, and train.method = 'full' trains whole weights: set "
                "train.method to 'lora'"
            )
        options = settings.engine_options | settings.evaluate.engine_options
        if options.get("full_weights") == "instead":
            return (
                "with full_weights = 'instead' the engine holds one set of whole weights at a time, and training draws "
                "from whole weights beside the base's: set evaluate.engine_options.full_weights to 'beside'"
            )
    if snapshot is not None and snapshot.validation_groups < MIN_VALIDATION_GROUPS:
        return (
            f"{snapshot.validation_groups} validation groups are fewer than {MIN_VALIDATION_GROUPS}, too few to "
            "choose a policy by: log more groups, or raise train.validation_fraction"
        )
    return None


def refuse_other_reward(key: RewardKey, scored_by: RewardKey) -> None:
    """Raises UserError when the reward of the settings is not the one that has scored the groups of a training.

    A training with draws compares them with these groups, and scores of two rewards say nothing about each other.

    Args:
        key: The reward of the settings.
    """
    if key != scored_by:
        raise UserError(
            f"the settings name the reward {' '.join(key)!r}, but the groups were last scored by "
            f"{' '.join(scored_by)!r}: set the same reward for the service and the trainer, or run `bonbon pairs "
            "rescore` to score the groups again and take a new snapshot",
            param="reward",
        )


class Drawing:
    """Fulfils the orders of one run, one after the other. The first order starts the engine and the reward.

    Args:
        make_engine: Returns the engine, not started; the call may import a heavy library.
        reward: The reward, not started.
        snapshot: The run's snapshot.
        box: The directory of the orders.
        name: Prefix of the policies' names in the engine, followed by the order's number. No other version may ever
            have such a name.
        pair_log: Where the groups are logged, with their own origin and for the users whose prompts they answer, so
            that deleting a user's groups deletes these as well. Groups of prompts that are no longer in the log are not
            logged.
        concurrency: Prompts processed concurrently.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        reward: Reward,
        snapshot: Snapshot,
        box: DrawBox,
        *,
        name: str,
        pair_log: PairLog,
        concurrency: int,
    ) -> None:
        self._make_engine, self._reward, self._snapshot, self._box = make_engine, reward, snapshot, box
        self._name, self._log, self._concurrency = name, pair_log, concurrency
        self._prompts: list[LoggedPrompt] = []
        self._running = AsyncExitStack()
        self._best_of_n: BestOfN | None = None

    @asynccontextmanager
    async def in_background(self) -> AsyncIterator[None]:
        """Fulfils the orders that are given while the block runs.

        The first order starts the engine while the training waits for it. Loading two models in two threads of one
        process at the same time corrupts both, because transformers and accelerate patch module construction for the
        whole process.
        """
        await asyncio.to_thread(self._box.withdraw_open)
        task = asyncio.create_task(self._run(), name="draws for a training")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._running.aclose()
            self._best_of_n = None

    async def _run(self) -> None:
        while True:
            for order in await asyncio.to_thread(self._box.open_orders):
                try:
                    await self._fulfil(order)
                except Exception as error:  # noqa: BLE001 - whatever it is, the training is waiting to be told
                    log.warning("drawing for the training failed", error=str(error))
                    await asyncio.to_thread(self._box.fail, order, error)
            await asyncio.sleep(POLL)

    async def _fulfil(self, order: DrawOrder) -> None:
        best_of_n = self._best_of_n or await self._start()
        if order.kind is VersionKind.BASE:
            return await self._draw_all(best_of_n, order, best_of_n.engine.base)
        version = VersionFiles(f"{self._name}-{order.number}", order.kind, Path(order.policy))
        if best_of_n.engine.displaces(version):
            raise UserError(
                "training draws from whole weights beside the base's, and this engine holds one at a time: set "
                "evaluate.engine_options.full_weights to 'beside', or train.refine to 'off'",
                param="train.refine",
            )
        await best_of_n.engine.load(version)
        try:
            await self._draw_all(best_of_n, order, version.name)
        finally:
            await best_of_n.engine.unload(version.name)

    async def _draw_all(self, best_of_n: BestOfN, order: DrawOrder, version: str) -> None:
        slots = asyncio.Semaphore(self._concurrency)
        drawn = await gather_or_cancel(self._draw(best_of_n, order, version, row, slots) for row in order.rows)
        rows = []
        for row, group in zip(order.rows, drawn, strict=True):
            if group is not None:
                asked = self._prompts[row]
                await self._keep(group, asked.group_id)
                rows.append(snapshot_row(_ranked(group, asked.digest), asked.split))
        await asyncio.to_thread(_write, self._box.groups(order.number), rows)

    async def _draw(
        self, best_of_n: BestOfN, order: DrawOrder, version: str, row: int, slots: asyncio.Semaphore
    ) -> Group | None:
        asked = self._prompts[row]
        async with slots:
            try:
                seeded = replace(asked.sampling, seed=(order.seed * 1_000_003 + row) % 2**31)
                group = (await best_of_n(asked.prompt, order.count, version=version, sampling=seeded)).group
            except PromptTooLong as error:
                log.warning("prompt left out of the training's draws", reason=str(error))
                return None
        if group.degraded is not None:
            raise RewardError(f"the training's draws could not be scored: {group.degraded}")
        return group

    async def _keep(self, group: Group, asked: str) -> None:
        """Logs a group that was drawn for the prompt of the group `asked`."""
        names = groups.c.tenant, groups.c.end_user.label("user"), groups.c.request_id
        async with self._log.database.read() as connection:
            row = (await connection.execute(select(*names).where(groups.c.id == asked))).mappings().one_or_none()
        if not self._snapshot.groups_file.exists():
            raise UserError("groups of the snapshot were deleted from the log, and the snapshot with them")
        if row is not None:
            await self._log.append(replace(group, origin=TRAINING, **row))

    async def _start(self) -> BestOfN:
        engine = await asyncio.to_thread(self._make_engine)
        best_of_n = BestOfN(engine, self._reward, deadline=OFFLINE_DEADLINE)
        await self._running.enter_async_context(best_of_n)
        self._prompts = await asyncio.to_thread(logged_prompts, self._snapshot)
        self._best_of_n = best_of_n
        return best_of_n


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial, compression="zstd")
    partial.replace(path)


def _ranked(group: Group, prompt_digest: str) -> TrainingGroup:
    """Returns the group with the digest that the snapshot's groups of this prompt have.

    The digest may differ from the prompt's own, because storing a prompt can replace characters.
    """
    ranked = sorted(group.candidates, key=lambda candidate: candidate.rank or 0)
    return TrainingGroup(
        group_id=group.id,
        version=group.version,
        prompt=group.prompt,
        prompt_digest=prompt_digest,
        prompt_token_ids=group.prompt_token_ids,
        candidates=tuple(candidate.token_ids for candidate in ranked),
        rewards=tuple(candidate.reward or 0.0 for candidate in ranked),
        logprobs=tuple(candidate.logprob for candidate in ranked),
        n=group.n,
        temperature=group.sampling.temperature,
        max_tokens=group.sampling.max_tokens,
        stop=group.sampling.stop,
        reward=RewardKey(group.reward_name, group.reward_version),
    )
