"""Rewards that individual tenants use instead of the service's."""

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
    """Best-of-n by each tenant's reward. Tenants that name the same reward share one instance.

    Args:
        main: Best-of-n by the service's reward, for all other tenants.
        rewards: Rewards that `tenants` may name. Only rewards that a tenant names are started.

    Attributes:
        failures: For each reward that could not score when it was checked, the reason. Its tenants get no answers until
            it can.

    Raises:
        UserError: A reward cannot be built, or has the same name as the service's reward.
    """

    def __init__(self, main: BestOfN, rewards: Mapping[str, RewardSpec], tenants: Mapping[str, Tenant]) -> None:
        if main.reward.name in rewards:
            raise UserError(
                f"service.rewards contains {main.reward.name!r}, which is the name of the service's own reward: "
                "choose another name, so that their groups can be distinguished",
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
        """Starts the rewards.

        Raises:
            UserError: A reward is not available.
        """
        for reward in self._rewards:
            await reward.start()

    async def stop(self) -> None:
        for reward in self._rewards:
            await reward.stop()

    async def check(self) -> None:
        """Lets each reward score that has not done so successfully yet, and updates `failures`."""
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
        """Returns whether a reward other than the service's ranks this tenant's candidates."""
        return tenant in self._of

    def best_of_n(self, tenant: str) -> BestOfN:
        """Returns best-of-n by this tenant's reward.

        Raises:
            EngineError: The reward has not been able to score yet.
        """
        chosen = self._of.get(tenant, self._main)
        if chosen is not self._main and chosen.reward.name in self.failures:
            raise EngineError(
                f"the reward {chosen.reward.name!r} of this tenant cannot score yet; see the service's log"
            )
        return chosen
