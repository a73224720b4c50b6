"""The training loop: trains, evaluates, gates, registers and promotes one round at a time, when there are enough
groups.
"""

import asyncio
import contextlib

import structlog

from bonbon.errors import BonbonError, Conflict, EngineError, RewardError, StoreError, UserError
from bonbon.registry.next_round import NextRound, next_round
from bonbon.registry.version_records import Version
from trainer.context import RunContext
from trainer.disk_full import DiskFull, disk_full_errors
from trainer.held_lease import HeldLease
from trainer.rounds import Round, Stage, new_directory, stages
from trainer.run_directory import unfinished_rounds

log = structlog.get_logger(__name__)

LEASE = "trainer"
LONGEST_PAUSE = 3600.0
"""Longest pause in seconds between attempts at a round that keeps failing."""


class RoundFailed(BonbonError):
    """Raised when a round cannot be trained and would fail again with the same groups and settings."""


class Loop:
    """Runs rounds in `context.settings.runs_dir`, each under the lease `trainer`.

    Raises UserError when a round could never have `train.min_pairs` pairs.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        settings = context.settings
        kept = settings.train.held_out_fraction + settings.train.validation_fraction
        trained_on = settings.loop.min_groups * (1 - kept)
        if trained_on < settings.train.min_pairs:
            raise UserError(
                f"loop.min_groups = {settings.loop.min_groups} leaves about {trained_on:.0f} pairs to train on, fewer "
                f"than train.min_pairs = {settings.train.min_pairs}: raise loop.min_groups or lower train.min_pairs",
                param="loop.min_groups",
            )

    async def run(self, stop: asyncio.Event) -> None:
        """Runs rounds until `stop` is set. A stage that has begun is finished first.

        Retries failures that may be temporary (an engine, reward or database failure, a full disk) at growing
        intervals.

        Raises:
            BonbonError: A round cannot be trained or needs a changed setting, so a retry would fail as well.
        """
        await self.context.check_training()
        poll = self.context.settings.loop.poll
        pause = poll
        while not stop.is_set():
            try:
                await self.once(stop)
                pause = poll
            except Conflict as conflict:
                log.info("another trainer is running", reason=str(conflict))
            except (UserError, RoundFailed):
                raise
            except DiskFull as full:
                pause = min(2 * pause, LONGEST_PAUSE)
                log.error("the disk is full; retrying the round", reason=str(full), seconds=pause)
            except Exception:
                pause = min(2 * pause, LONGEST_PAUSE)
                log.exception("the round was interrupted; retrying it", seconds=pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    async def once(
        self, stop: asyncio.Event | None = None, *, now: bool = False, patient: bool = False
    ) -> Version | None:
        """Continues an interrupted round, or runs a new one when its groups suffice.

        Returns None when there was nothing to run, or when `stop` was set meanwhile. With `now`, a new round begins in
        any case.

        Raises:
            Conflict: Another trainer holds the lease or took it over.
            DiskFull: There is not enough disk space for the round's files.
            RoundFailed: Training is impossible; the round is closed.
        """
        if self._unfinished() is None and not now and not (await self.next_round()).is_ready:
            return None
        settings = self.context.settings.loop
        async with HeldLease(self.context.database, LEASE, settings.lease_seconds, patient=patient) as lease:
            round_ = self._unfinished() or await self._begin(now=now)
            result: Version | None = None
            if round_ is None:
                return None
            for stage in stages(round_, promote=settings.auto_promote):
                if stop is not None and stop.is_set():
                    return None
                await lease.confirm()
                try:
                    result = await self._perform(round_, stage)
                except Exception:
                    if not round_.erased:
                        raise
                    await round_.close_erased()
                    return None
            return result

    async def next_round(self) -> NextRound:
        """Returns what the next round waits for."""
        context = self.context
        return await next_round(context.registry, await context.champion(), context.settings)

    def _unfinished(self) -> Round | None:
        directories = unfinished_rounds(self.context.settings.runs_dir)
        return Round.open(self.context, directories[0]) if directories else None

    async def _begin(self, *, now: bool) -> Round | None:
        upcoming = await self.next_round()
        if not upcoming.is_ready and not now:
            return None
        directory = new_directory(self.context.settings.runs_dir, "round")
        log.info("round begins", champion=upcoming.champion, groups=upcoming.groups, run=str(directory))
        with disk_full_errors(directory):
            return await Round.create(self.context, directory)

    async def _perform(self, round_: Round, stage: Stage) -> Version | None:
        try:
            with disk_full_errors(round_.directory):
                result = await stage()
        except (Conflict, StoreError, DiskFull):
            raise
        except (EngineError, RewardError):
            raise  # the draws so far are kept
        except BonbonError as error:
            if stage in (round_.snapshot, round_.train) and not round_.erased:  # `once` closes an erased round
                await round_.fail(error)
                raise RoundFailed(f"{round_.directory.name} is closed: {error}") from error
            raise
        return result if isinstance(result, Version) else None
