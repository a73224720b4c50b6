"""What a running service is made of."""

import asyncio
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from bonbon.best_of_n import BestOfN
from bonbon.database import Database
from bonbon.engines.base import Engine
from bonbon.pairs.log import PairLog
from bonbon.registry.registry import Registry
from bonbon.rewards.base import Reward
from bonbon.settings import Settings
from service.admission import Admission
from service.audit import Audits
from service.connections import Connections
from service.keyring import Keyring
from service.limits import RateLimits
from service.metrics import Metrics
from service.one_at_a_time import OneAtATime
from service.savings import SavingsCounter
from service.send_buffer import SendBuffers
from service.serving import Serving
from service.startup import Startup
from service.stored_metrics import StoredMetrics
from service.swap import Swapper
from service.tenant_rewards import TenantRewards


@dataclass(frozen=True, slots=True)
class Parts:
    """Wired together by `service.app.create_app`, found by routes as `app.state.parts`.

    `cut_off` is set when the service stops and answers in flight have had their time.
    """

    settings: Settings
    database: Database
    engine: Engine
    reward: Reward
    best_of_n: BestOfN
    tenant_rewards: TenantRewards
    pair_log: PairLog
    registry: Registry
    serving: Serving
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
    cut_off: asyncio.Event = field(default_factory=asyncio.Event)


def get_parts(connection: HTTPConnection) -> Parts:
    """The parts of the service that a request reached; a FastAPI dependency."""
    parts: Parts = connection.app.state.parts
    return parts
