"""Bringing the engine up, and what serves from it; the service answers meanwhile, and says why it is not ready."""

import asyncio
from contextlib import suppress

import structlog

from bonbon.engines.base import Engine
from bonbon.errors import BonbonError, EngineError
from service.audit import Audits
from service.swap import Swapper

log = structlog.get_logger(__name__)

RETRY_FIRST, RETRY_LONGEST = 5.0, 600.0
"""Seconds before the engine is started again, doubling from the first to the longest."""


class Startup:
    """Starts the engine, then serves what the registry names.

    When the engine cannot be started, whether the user must mend something or a fleet is not there yet, `failure` says
    why, and it is tried again until it can.

    `retry` is the time in seconds before the first new try.
    """

    def __init__(self, engine: Engine, swapper: Swapper, audits: Audits) -> None:
        self._engine, self._swapper, self._audits = engine, swapper, audits
        self.retry = RETRY_FIRST
        self._trying: asyncio.Task[None] | None = None
        self.failure: str | None = "it is not started"

    async def start(self) -> None:
        """Try once; when that fails, go on trying in the background. Raises what is no error of the engine."""
        try:
            await self._start_engine()
        except BonbonError:
            self._trying = asyncio.create_task(self._try_again(), name="startup")
        else:
            await self._serve()

    async def stop(self) -> None:
        """Stop everything that was started."""
        if self._trying is not None:
            self._trying.cancel()
            with suppress(asyncio.CancelledError):
                await self._trying
        await self._audits.stop()
        await self._swapper.stop()
        await self._engine.stop()

    def check(self) -> None:
        """Raise EngineError, saying why, while nothing can be drawn yet."""
        if self.failure is not None:
            raise EngineError(f"the engine cannot draw yet: {self.failure}")

    async def _start_engine(self) -> None:
        try:
            await self._engine.start()
        except BonbonError as error:
            self.failure = str(error)
            log.error("the engine cannot be started", reason=self.failure)
            raise

    async def _serve(self) -> None:
        await self._swapper.start()
        await self._audits.start()
        self.failure = None

    async def _try_again(self) -> None:
        pause = self.retry
        while self.failure is not None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_LONGEST)
            try:
                await self._start_engine()
                await self._serve()
            except BonbonError as error:
                self.failure = str(error)
            except Exception as error:
                # Nobody waits for this task: if it ended, the service would never become ready, and never say why.
                self.failure = f"{type(error).__name__}: see the log"
                log.exception("the engine cannot be started")
            else:
                log.info("the engine is started now", base=self._engine.base)
