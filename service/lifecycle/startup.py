"""Bringing up what answers; the service answers meanwhile, and says why it is not ready."""

import asyncio
from collections.abc import Callable

import structlog

from bonbon.concurrency.shielded import end
from bonbon.engines.engine import Engine
from bonbon.errors import BonbonError, EngineError, RewardError, UserError
from bonbon.rewards.reward import Reward
from bonbon.rewards.reward_check import check_reward
from service.lifecycle.audit import Audits
from service.lifecycle.savings import SavingsCounter
from service.lifecycle.swap import Swapper
from service.routing.tenant_rewards import TenantRewards

log = structlog.get_logger(__name__)

RETRY_FIRST, RETRY_LONGEST = 5.0, 600.0
"""Seconds before the engine is started again, doubling from the first to the longest."""
RETRY_REWARD = 30.0
"""The longest where only a reward is missing: to ask it costs little."""


class Startup:
    """Starts the engine, serves what the registry names, and sees that the rewards score.

    What may pass by itself, such as a server that is not there yet, is tried again until it works. A UserError of the
    engine does not pass: the model's files or the settings must be changed, and they are read by a new process only.

    `retry` is the time in seconds before the first new try, and `give_up` is called with the UserError where a new try
    raises one.
    """

    def __init__(
        self,
        engine: Engine,
        swapper: Swapper,
        audits: Audits,
        savings: SavingsCounter,
        reward: Reward,
        tenant_rewards: TenantRewards,
    ) -> None:
        self._engine, self._swapper, self._audits, self._savings = engine, swapper, audits, savings
        self._reward, self._tenant_rewards = reward, tenant_rewards
        self.retry = RETRY_FIRST
        self.give_up: Callable[[UserError], None] = lambda _error: None
        self._trying: asyncio.Task[None] | None = None
        self._engine_failure: str | None = "it is not started"
        self._reward_failure: str | None = "it is not checked"

    async def start(self) -> None:
        """Try once; where something fails that may pass by itself, go on trying in the background.

        Raises UserError where the engine can never start as it is, and what is no error of the engine.
        """
        if await self._start_engine():
            await self._serve()
        if not self._complete:
            self._trying = asyncio.create_task(self._try_again(), name="startup")

    async def stop(self) -> None:
        """Stop everything that was started."""
        if self._trying is not None:
            await end(self._trying)
        await self._audits.stop()
        await self._savings.stop()
        await self._swapper.stop()
        await self._engine.stop()

    @property
    def failure(self) -> str | None:
        """Why nothing can be answered yet; None when something can.

        Where the alias answers with one draw, the reward is not waited for.
        """
        if self._engine_failure is not None:
            return f"the engine cannot draw yet: {self._engine_failure}"
        if self._reward_failure is not None and self._swapper.serving.k > 1:
            return f"best-of-n cannot answer yet: {self._reward_failure}"
        return None

    def check(self) -> None:
        """Raise EngineError while nothing can be answered yet. What a reward's server said is not for clients."""
        if self.failure is not None:
            waits_for_reward = self._engine_failure is None
            raise EngineError("the reward cannot score yet: see /health/ready" if waits_for_reward else self.failure)

    @property
    def _complete(self) -> bool:
        return self._engine_failure is None and self._reward_failure is None and not self._tenant_rewards.failures

    async def _start_engine(self) -> bool:
        """Whether it is started. Raises UserError where it never will be."""
        try:
            await self._engine.start()
        except UserError:
            raise
        except BonbonError as error:
            self._engine_failure = str(error)
            log.error("the engine cannot be started", reason=self._engine_failure)
            return False
        return True

    async def _serve(self) -> None:
        await self._swapper.start()
        await self._audits.start()
        await self._savings.start()
        self._engine_failure = None
        await self._check_rewards()

    async def _check_rewards(self) -> None:
        await self._tenant_rewards.check()
        if self._reward_failure is None:
            return
        try:
            await check_reward(self._reward)
        except RewardError as error:
            self._reward_failure = str(error)
            log.error("the reward cannot score", reason=self._reward_failure)
        else:
            self._reward_failure = None

    async def _try_again(self) -> None:
        pause = self.retry
        while not self._complete:
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_REWARD if self._engine_failure is None else RETRY_LONGEST)
            try:
                if self._engine_failure is None:
                    await self._check_rewards()
                elif await self._start_engine():
                    await self._serve()
            except UserError as error:
                self._fail(str(error))
                self.give_up(error)
                return
            except BonbonError as error:
                self._fail(str(error))
            except Exception as error:
                # Nobody waits for this task: if it ended, the service would never become ready, and never say why.
                self._fail(f"{type(error).__name__}: see the log")
                log.exception("the service cannot be started completely")
        log.info("everything is started now", base=self._engine.base, reward=self._reward.name)

    def _fail(self, why: str) -> None:
        if self._engine_failure is None:
            self._reward_failure = why
        else:
            self._engine_failure = why
