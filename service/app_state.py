"""What a running service is made of."""

import asyncio
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from bonbon.best_of_n import BestOfN
from bonbon.engines.engine import Engine
from bonbon.pairs.pair_log import PairLog
from bonbon.registry.registry import Registry
from bonbon.rewards.reward import Reward
from bonbon.settings import Settings
from bonbon.store.database import Database
from service.answering.admission import Admission
from service.answering.routing import Serving
from service.answering.tenant_rewards import TenantRewards
from service.auth.keyring import Keyring
from service.auth.rate_limits import RateLimits
from service.http_server.connections import Connections
from service.http_server.send_buffer import SendBuffers
from service.lifecycle.audit import Audits
from service.lifecycle.savings import SavingsCounter
from service.lifecycle.startup import Startup
from service.lifecycle.swap import Swapper
from service.metrics.process_metrics import Metrics
from service.metrics.stored_metrics import StoredMetrics
from service.one_at_a_time import OneAtATime


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
