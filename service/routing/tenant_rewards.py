"""Rewards of their own that tenants have in place of the service's."""

from collections.abc import Mapping

import structlog

from bonbon.best_of_n import BestOfN
from bonbon.errors import EngineError, RewardError, UserError
from bonbon.rewards import build_reward
from bonbon.rewards.named import NamedReward
from bonbon.rewards.reward_check import check_reward
from bonbon.settings import RewardSpec, Tenant

log = structlog.get_logger(__name__)


class TenantRewards:
    """Best-of-n by each tenant's reward. One reward serves all tenants that name it, and shares nothing with another.

    `failures` says of each reward that could not score when it was checked why; its tenants get no answer until it can.

    Args:
        main: by the service's reward, which all other tenants have.
        rewards: what `tenants` may name. Only what one of them does name is started.

    Raises:
        UserError: a reward cannot be built, or has the service's reward's name.
    """

    def __init__(self, main: BestOfN, rewards: Mapping[str, RewardSpec], tenants: Mapping[str, Tenant]) -> None:
        if main.reward.name in rewards:
            raise UserError(
                f"service.rewards has a {main.reward.name!r}, which is what the service's own reward is called: "
                "give it another name, or their groups could not be told apart",
                param="service.rewards",
            )
        built = {name: NamedReward(name, build_reward(spec)) for name, spec in rewards.items()}
        named = {tenant: own.reward for tenant, own in tenants.items() if own.reward is not None}
        self._main = main
        self._rewards = [built[name] for name in dict.fromkeys(named.values())]
        own = {reward.name: BestOfN(main.engine, reward, deadline=main.deadline) for reward in self._rewards}
        self._of = {tenant: own[name] for tenant, name in named.items()}
        self._checked: set[str] = set()
        self.failures: dict[str, str] = {}

    async def start(self) -> None:
        """Start them. Raises UserError when one cannot be had."""
        for reward in self._rewards:
            await reward.start()

    async def stop(self) -> None:
        for reward in self._rewards:
            await reward.stop()

    async def check(self) -> None:
        """Have those rewards score that have not done so yet; see `failures`."""
        for reward in self._rewards:
            if reward.name in self._checked:
                continue
            try:
                await check_reward(reward)
            except RewardError as error:
                self.failures[reward.name] = str(error)
                log.error("a tenant's reward cannot score", reward=reward.name, reason=str(error))
            else:
                self._checked.add(reward.name)
                self.failures.pop(reward.name, None)

    def has_own(self, tenant: str) -> bool:
        """Whether another reward than the service's ranks this tenant's candidates."""
        return tenant in self._of

    def best_of_n(self, tenant: str) -> BestOfN:
        """Ranks by this tenant's reward. Raises EngineError while that could not score yet."""
        chosen = self._of.get(tenant, self._main)
        if chosen is not self._main and chosen.reward.name in self.failures:
            raise EngineError(
                f"the reward {chosen.reward.name!r} of this tenant cannot score yet; the service's log says why"
            )
        return chosen
