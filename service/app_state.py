"""The components of a running service."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from bonbon.best_of_n import BestOfN
from bonbon.engines.engine import Engine
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.pair_stats import PairStats
from bonbon.registry.registry import Registry
from bonbon.rewards.reward import Reward
from bonbon.settings import Settings
from bonbon.store.database import Database
from service.auth.keyring import Keyring
from service.http_server.connections import Connections
from service.http_server.send_buffer import SendBuffers
from service.lifecycle.audit import Audits
from service.lifecycle.savings import SavingsCounter
from service.lifecycle.startup import Startup
from service.lifecycle.swap import Swapper
from service.limits.admission import Admission
from service.limits.rate_limits import RateLimits
from service.metrics.process_metrics import Metrics
from service.metrics.stored_metrics import StoredMetrics
from service.one_at_a_time import OneAtATime
from service.routing.router import Router
from service.routing.tenant_rewards import TenantRewards


@dataclass(frozen=True, slots=True)
class AppState:
    """The components that `service.app.create_app` wires together. Routes find them as `app.state.bonbon`.

    Attributes:
        cut_off: Set when the service stops and the running requests have used up their time.
    """

    settings: Settings
    database: Database
    engine: Engine
    reward: Reward
    best_of_n: BestOfN
    tenant_rewards: TenantRewards
    pair_log: PairLog
    registry: Registry
    router: Router
    swapper: Swapper
    audits: Audits
    savings: SavingsCounter
    startup: Startup
    keyring: Keyring
    limits: RateLimits
    connections: Connections
    admission: Admission
    send_buffers: SendBuffers
    metrics: Metrics
    stored_metrics: StoredMetrics
    champion: OneAtATime[str | None]
    pair_stats: OneAtATime[PairStats]
    cut_off: asyncio.Event = field(default_factory=asyncio.Event)


def get_state(connection: HTTPConnection) -> AppState:
    """Returns the state of the service that received a request; a FastAPI dependency."""
    state: AppState = connection.app.state.bonbon
    return state


CurrentState = Annotated[AppState, Depends(get_state)]
"""The type of a route's parameter that FastAPI fills with the state of the service."""
