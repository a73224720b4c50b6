"""Starts the engine and checks the rewards while the service already listens and reports why it is not ready."""

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
"""Seconds before the next try to start the engine: the first and the longest delay, which doubles in between."""
RETRY_REWARD = 30.0
"""The longest delay, in seconds, when only a reward is missing, because a check of it costs little."""


class Startup:
    """Starts the engine, serves the versions that the registry names, and checks that the rewards can score.

    A failure that may pass by itself, such as a server that is not available yet, is retried until it has passed. A
    UserError of the engine cannot pass: the model's files or the settings must be changed, and only a new process reads
    them again.

    Attributes:
        retry: Seconds before the first retry.
        fatal: The UserError that a retry raised. There are no more retries after it.
        give_up: Called when `fatal` has been set.
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
        self.fatal: UserError | None = None
        self.give_up: Callable[[], None] = lambda: None
        self._trying: asyncio.Task[None] | None = None
        self._engine_failure: str | None = "it is not started"
        self._reward_failure: str | None = "it is not checked"

    async def start(self) -> None:
        """Tries once, and keeps trying in the background after a failure that may pass by itself.

        Raises UserError when the engine can never start as it is. Errors that are not the engine's are raised as well.
        """
        if await self._start_engine():
            await self._serve()
        if not self._complete:
            self._trying = asyncio.create_task(self._try_again(), name="startup")

    async def stop(self) -> None:
        """Stops everything that was started."""
        if self._trying is not None:
            await end(self._trying)
        await self._audits.stop()
        await self._savings.stop()
        await self._swapper.stop()
        await self._engine.stop()

    @property
    def failure(self) -> str | None:
        """The reason why the service cannot answer yet, or None when it can.

        When the alias answers with one draw, the service does not wait for the reward.
        """
        if self._engine_failure is not None:
            return f"the engine cannot draw yet: {self._engine_failure}"
        if self._reward_failure is not None and self._swapper.router.k > 1:
            return f"best-of-n cannot answer yet: {self._reward_failure}"
        return None

    def check(self) -> None:
        """Raises EngineError while the service cannot answer. Clients do not learn what a reward's server reported."""
        if self.failure is not None:
            waits_for_reward = self._engine_failure is None
            raise EngineError("the reward cannot score yet: see /health/ready" if waits_for_reward else self.failure)

    @property
    def _complete(self) -> bool:
        return self._engine_failure is None and self._reward_failure is None and not self._tenant_rewards.failures

    async def _start_engine(self) -> bool:
        """Returns whether the engine has started. Raises UserError when it can never start."""
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
                self.fatal = error
                self.give_up()
                return
            except BonbonError as error:
                self._fail(str(error))
            except Exception as error:
                # Nothing awaits this task. If it ended here, the service would never become ready or report why.
                self._fail(f"{type(error).__name__}: see the log")
                log.exception("the service cannot be started completely")
        log.info("everything is started now", base=self._engine.base, reward=self._reward.name)

    def _fail(self, why: str) -> None:
        if self._engine_failure is None:
            self._reward_failure = why
        else:
            self._engine_failure = why
