"""Wires the service together."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline

from bonbon import __version__
from bonbon.best_of_n import BestOfN
from bonbon.engines import build_engine
from bonbon.engines.engine import Engine
from bonbon.errors import Conflict, UserError
from bonbon.files.model_files import resolve_model, served_name
from bonbon.keys.key_records import Scope
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.pair_stats import stats
from bonbon.pairs.spool.spool import Spool
from bonbon.registry.registry import Registry
from bonbon.rewards import build_reward
from bonbon.rewards.reward import Reward
from bonbon.settings import RewardSpec, Settings
from bonbon.store.database import Database
from service import errors
from service.app_state import AppState
from service.auth.keyring import Keyring
from service.http_server.connections import Connections
from service.http_server.send_buffer import SendBuffers
from service.http_server.server import GOODBYE
from service.http_server.spare_connections import SpareConnections
from service.lifecycle.audit import Audits
from service.lifecycle.retention import Retention
from service.lifecycle.savings import SavingsCounter
from service.lifecycle.startup import Startup
from service.lifecycle.swap import Swapper
from service.limits.admission import Admission
from service.limits.rate_limits import RateLimits
from service.metrics.process_metrics import Metrics
from service.metrics.stored_metrics import StoredMetrics
from service.middleware.body_limit import BodyLimit
from service.middleware.cors import Cors
from service.middleware.key_first import KeyFirst
from service.middleware.lenient_paths import ForgivingPaths
from service.middleware.readiness import require_engine
from service.middleware.request_id import RequestId
from service.middleware.request_metrics import MeasureRequests
from service.middleware.request_tracing import TraceRequests
from service.one_at_a_time import OneAtATime
from service.routes import (
    chat,
    completions,
    console_files,
    feedback,
    groups,
    health,
    models,
    prometheus,
    responses,
    tokenize,
    version,
)
from service.routes.admin import charts, playground, progress, versions, win_rate
from service.routes.dependencies import allow
from service.routing.fallback import Fallback
from service.routing.router import Router
from service.routing.tenant_rewards import TenantRewards

log = structlog.get_logger(__name__)

CHAMPION_WITHIN = 2.0
"""Seconds that a readiness check waits for the registry."""
STATS_KEPT = 20.0
"""How long the pair log's counts are shown again, as a multiple of the time that counting took: the console asks for
them every few seconds, and a large log takes minutes to read."""


def create_app(settings: Settings, *, engine: Engine | None = None, reward: Reward | None = None) -> FastAPI:
    """Returns the service that `settings` describe. `engine` and `reward` replace theirs. Nothing is loaded until it
    starts.

    Raises:
        UserError: A setting is missing or names something unknown.
    """
    state = build_state(settings, engine, reward)
    app = FastAPIOffline(
        title="bonbon",
        version=__version__,
        description="OpenAI-compatible API with best-of-n answers, distilled into a model that needs fewer candidates.",
        lifespan=_lifespan(state),
    )
    app.state.bonbon = state
    app.state.stopping = False
    for router in (chat.router, responses.router, completions.router, models.router, tokenize.router):
        app.include_router(router, dependencies=[Depends(allow(Scope.COMPLETE)), Depends(require_engine)])
    app.include_router(feedback.router, dependencies=[Depends(allow(Scope.FEEDBACK))])
    for part in (
        groups,
        versions,
        win_rate,
        charts,
        progress,
        playground,
        console_files,
        health,
        prometheus,
        version,
    ):
        app.include_router(part.router)
    # The middleware that is added last is the outermost.
    app.add_middleware(BodyLimit, max_body_bytes=settings.service.max_body_bytes)
    app.add_middleware(KeyFirst, keyring=state.keyring)
    app.add_middleware(SpareConnections)
    errors.install(app)
    app.add_middleware(MeasureRequests, metrics=state.metrics)
    app.add_middleware(TraceRequests)
    if settings.service.cors_origins:
        app.add_middleware(Cors, origins=settings.service.cors_origins)
    app.add_middleware(RequestId)
    app.add_middleware(ForgivingPaths)
    return app


def build_state(settings: Settings, engine: Engine | None = None, reward: Reward | None = None) -> AppState:
    """Returns the components of the service, none of them started."""
    service = settings.service
    engine = engine or build_engine(settings, base=base_name(settings))
    reward = reward or build_reward(_reward_spec(settings))
    best_of_n = BestOfN(engine, reward, deadline=service.reward_deadline)
    tenant_rewards = TenantRewards(best_of_n, service.rewards, service.tenants)
    database = Database(settings.database, timeouts=settings.database_timeouts)
    spool = Spool(settings.spool_dir, service.spool_bytes) if service.spool_bytes else None
    pair_log = PairLog(database, spool, drop=service.spool_full == "drop")
    registry = Registry(database, settings.versions_dir)
    prometheus = Metrics()
    admission = Admission(service.max_tokens_in_flight, max_waiting=service.max_waiting, max_wait=service.max_wait)
    router = Router(engine.base, alias=service.alias, n=settings.n, k=service.k)
    swapper = Swapper(
        engine, registry, router, prometheus, poll=service.registry_poll, drain_deadline=service.drain_timeout
    )
    fallback = Fallback(registry, router, prometheus, service.win_rate_floor)
    savings = SavingsCounter(database, router, prometheus)
    audits = Audits(
        best_of_n,
        pair_log,
        router,
        prometheus,
        fallback,
        savings,
        audit_fraction=service.audit_fraction,
        audit_budget=service.audit_budget,
        n=settings.n,
        audit_queue=service.audit_queue,
    )
    connections, send_buffers = Connections(service, prometheus), SendBuffers(service.stream_buffer_bytes)
    _watch(prometheus, pair_log, connections, admission, send_buffers, router, swapper, audits)
    return AppState(
        settings=settings,
        database=database,
        engine=engine,
        reward=reward,
        best_of_n=best_of_n,
        tenant_rewards=tenant_rewards,
        pair_log=pair_log,
        registry=registry,
        router=router,
        swapper=swapper,
        audits=audits,
        savings=savings,
        startup=Startup(engine, swapper, audits, savings, reward, tenant_rewards),
        keyring=Keyring(database, service),
        limits=RateLimits(service.limits, {name: own.limits(service.limits) for name, own in service.tenants.items()}),
        connections=connections,
        admission=admission,
        send_buffers=send_buffers,
        metrics=prometheus,
        stored_metrics=StoredMetrics(prometheus.families, registry, router, fallback, settings),
        champion=OneAtATime(registry.champion, CHAMPION_WITHIN),
        pair_stats=OneAtATime(lambda: stats(database), settings.database_bulk_timeout, keep=STATS_KEPT),
    )


def _watch(
    metrics: Metrics,
    pair_log: PairLog,
    connections: Connections,
    admission: Admission,
    send_buffers: SendBuffers,
    router: Router,
    swapper: Swapper,
    audits: Audits,
) -> None:
    """Registers gauges that show what waits, is held and is refused now."""
    watch, spool = metrics.watch, pair_log.spool
    watch("bonbon_connections", "Open client connections.", lambda: connections.open)
    watch("bonbon_tokens_in_flight", "Tokens that may be generated for admitted requests.", lambda: admission.in_flight)
    watch("bonbon_requests_waiting", "Requests that wait to be admitted.", lambda: admission.waiting)
    watch(
        "bonbon_stream_buffer_bytes",
        "Bytes of streamed answers that clients have not read yet.",
        lambda: send_buffers.bytes,
    )
    watch(
        "bonbon_spool_bytes",
        "Size of the groups in the spool, which are not in the database yet.",
        lambda: spool.size if spool is not None else 0,
    )
    watch(
        "bonbon_groups_set_aside",
        "Spooled groups that the database rejects or that cannot be read; `bonbon pairs spool` lists them.",
        lambda: spool.set_aside.count if spool is not None else 0,
    )
    watch("bonbon_pair_log_waiting", "Groups that are not durable yet.", lambda: pair_log.waiting)
    watch(
        "bonbon_audit_ratio",
        "Share of the champion's answers that is audited, as set by service.audit_fraction or service.audit_budget.",
        lambda: audits.fraction,
    )
    watch("bonbon_audits_waiting", "Audits that have not started.", lambda: audits.waiting)
    watch(
        "bonbon_answers_in_flight",
        "References that requests and audits hold to versions now.",
        lambda: router.in_flight,
    )
    watch(
        "bonbon_versions_refused",
        "Versions that an alias names but that cannot be served.",
        lambda: len(swapper.refused),
    )
    watch(
        "bonbon_versions_draining",
        "Versions that are unloaded when their last request has finished.",
        lambda: len(swapper.draining),
    )
    watch("bonbon_best_of_n", "1 while the alias answers with best-of-n.", lambda: router.routes.best_of_n)
    watch(
        "bonbon_fallen_back",
        "1 after a fallback to best-of-n, until the next promotion or rollback.",
        lambda: router.routes.fallen_back,
    )
    watch("bonbon_n", "Candidates that best-of-n samples.", lambda: router.n)
    watch("bonbon_k", "Candidates that the alias samples for one answer now.", lambda: router.k)


def base_name(settings: Settings) -> str:
    """Returns the name under which the base is served.

    Raises:
        UserError: No model is set and the engine needs one.
    """
    if settings.model:
        return served_name(settings.model)
    if settings.engine == "fake":
        return "fake"
    raise UserError(
        "no model is set: set --model (or BONBON_MODEL) to a directory in Hugging Face format or a hub name",
        param="model",
    )


def _reward_spec(settings: Settings) -> RewardSpec:
    if settings.reward is not None:
        return settings.reward
    if settings.engine == "fake":
        return RewardSpec(kind="fake")
    raise UserError(
        "no reward is set: set --reward (or BONBON_REWARD) to a model's directory or hub name, a URL or kind:target",
        param="reward",
    )


def _lifespan(state: AppState) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            await _start(state, stack)
            app.state.stopping = False
            yield
            app.state.stopping = True
            await _drain(state)

    return lifespan


async def _start(state: AppState, stack: AsyncExitStack) -> None:
    """Starts all components and puts their stops on the stack.

    When this returns, the champion is being served. If the engine cannot be started, the service is up but unready,
    gives the reason, and tries again.
    """
    settings = state.settings
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    for part in (state.database, state.keyring, state.pair_log, state.reward, state.tenant_rewards):
        await part.start()
        stack.push_async_callback(part.stop)
    await _register_base(state)
    retention = Retention(
        state.database,
        settings.runs_dir,
        settings.spool_dir,
        days=settings.service.retention_days,
        poll=settings.service.retention_poll,
    )
    await retention.start()
    stack.push_async_callback(retention.stop)
    stack.push_async_callback(state.startup.stop)
    await state.startup.start()
    log.info(
        "service started",
        ready=state.startup.failure is None,
        base=state.engine.base,
        champion=state.router.champion,
        reward=state.reward.name,
        n=settings.n,
    )


async def _register_base(state: AppState) -> None:
    """Registers the base, and makes it the champion if there is none."""
    settings, registry = state.settings, state.registry
    directory = await asyncio.to_thread(_base_directory, settings)
    base = await registry.register_base(state.engine.base, directory)
    if await registry.champion() is None:
        try:
            await registry.promote(base.name, actor="first start")
        except Conflict:
            log.info("another replica promoted the first champion", champion=await registry.champion())


def _base_directory(settings: Settings) -> Path | None:
    """Returns the directory of the base's files, or None if this process needs none, because remote servers have their
    own."""
    here = Path(settings.model).expanduser().is_dir()
    if not settings.model or settings.engine == "fake" or (settings.engine == "remote" and not here):
        return None
    return resolve_model(settings.model, settings.revision)


async def _drain(state: AppState) -> None:
    await state.audits.stop()
    try:
        # Requests that were cut off have used up their time.
        async with asyncio.timeout(GOODBYE if state.cut_off.is_set() else state.settings.service.drain_timeout):
            await state.router.all_drained()
    except TimeoutError:
        log.warning("requests cut off because they did not finish in time", in_flight=state.router.in_flight)
