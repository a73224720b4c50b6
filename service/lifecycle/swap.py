"""Hot swap: follows the registry's aliases without failing a request. docs/swap.md describes the guarantees."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from socket import gethostname

import structlog

from bonbon.concurrency.shielded import end
from bonbon.engines.engine import Engine, VersionKind
from bonbon.engines.golden_prompts import check_golden_prompts
from bonbon.errors import EngineError, UserError
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import BEST_OF_N, CHALLENGER, CHAMPION, PREVIOUS, Target, Version
from service.metrics.process_metrics import Metrics
from service.routing.router import Loaded, Router

log = structlog.get_logger(__name__)

RETRY_FIRST, RETRY_LONGEST = 30.0, 600.0
"""Seconds until a refused version is tried again; the pause doubles from the first value to the second."""
RETRY_ENGINE = 2.0
"""Seconds until a version is tried again if the engine itself cannot generate, so that the version is not at fault."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version that an alias names is not served. `retry_at` is a time of the monotonic clock, in seconds."""

    version: str
    reason: str
    time: datetime
    attempts: int
    retry_at: float


class _NotServable(Exception):
    """Raised when a version cannot be loaded; the message gives the reason."""


class Swapper:
    """Keeps the served versions equal to those that the registry's aliases name.

    It serves the champion, `previous` (so that a rollback needs no load), the challenger and the base. A version is
    loaded under its own name and checked before requests are routed to it. A version that is no longer needed first
    leaves the routing table, and leaves the engine when its last request has finished. If a name refers to other files
    than before, because the registry was restored, this process no longer serves it.

    If the engine cannot hold a new version beside the served one, requests wait while it is loaded. Then only the
    champion is served, and whatever else fits.

    Args:
        poll: Seconds between checks of the registry.
        drain_deadline: Seconds that running requests have to finish before such a load.
        golden_deadline: Seconds that a version has to answer the golden prompts.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        router: Router,
        metrics: Metrics,
        *,
        poll: float,
        golden_deadline: float = 60.0,
        drain_deadline: float = 30.0,
    ) -> None:
        self.engine, self.registry, self.router, self.metrics = engine, registry, router, metrics
        self.poll, self.golden_deadline, self.drain_deadline = poll, golden_deadline, drain_deadline
        self.refused: dict[str, Refusal] = {}
        self._aliases: dict[str, str] = {}
        self._checked: dict[str, Loaded] = dict(router.routes.loaded)
        self._routed = False
        self._settled: dict[str, Target] | None = None
        self._used: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[None], str] = {}

    @property
    def draining(self) -> frozenset[str]:
        """Versions that new requests no longer reach and that are not unloaded yet."""
        return frozenset(self._retiring.values())

    async def start(self) -> None:
        """Serves what the registry names and starts to watch it. The base is already registered and loaded."""
        base = await self.registry.get(self.engine.base)
        self._checked[base.name] = Loaded(base.name, base.created, base.parent)
        await self.converge()
        self._watcher = asyncio.create_task(self._watch(), name="swapper")

    async def stop(self) -> None:
        """Stops watching. Loaded versions stay loaded until the engine stops."""
        await end(*(task for task in (self._watcher, *self._retiring) if task is not None))

    async def converge(self, *, retry: bool = False) -> None:
        """Serves the versions that the aliases name, as far as possible. When this returns, the aliases that were read
        were current.

        A version that cannot be served raises nothing: it is in `refused`, and the former champion continues to answer.
        With `retry`, refused versions are tried again now.
        """
        async with self._lock, AsyncExitStack() as pause:
            if retry:
                self._settled, self.refused = None, {}
            while not await self._turn(pause):
                pass

    async def _watch(self) -> None:
        pause = self.poll
        while True:
            await asyncio.sleep(pause)
            try:
                await self.converge()
                pause = self.poll
            except Exception:
                log.exception("cannot read the registry; the served versions stay")
                pause = max(self.poll, 5.0)

    async def _turn(self, pause: AsyncExitStack) -> bool:
        """Makes one pass. Returns False if the aliases changed meanwhile and the pass must be repeated.

        `pause` is entered if requests must wait; it ends when requests are routed to the champion.
        """
        targets = await self.registry.targets()
        if targets == self._settled and not self._can_retry():
            return True
        aliases = {alias: target.version for alias, target in targets.items()}
        await self._drop_changed(targets, pause)
        for target in targets.values():
            if (loaded := self._checked.get(target.version)) is not None:
                self._checked[target.version] = replace(loaded, k=target.k)
        if aliases != self._aliases:
            # The aliases changed, so refused versions are tried again.
            self._aliases, self.refused = aliases, {}
        champion = await self._choose_champion(aliases, pause)
        if await self.registry.targets() != targets:
            return False
        self._route(champion, set(self._checked))
        await pause.aclose()
        wanted = {self.engine.base, champion}
        for alias in (PREVIOUS, CHALLENGER):
            name = aliases.get(alias)
            if name is not None and await self._fits(name) and await self._bring_up(name, pause):
                wanted.add(name)
        self._route(champion, wanted)
        self._settled = targets
        return await self.registry.targets() == targets

    def _can_retry(self) -> bool:
        return any(time.monotonic() >= refusal.retry_at for refusal in self.refused.values())

    async def _choose_champion(self, aliases: dict[str, str], pause: AsyncExitStack) -> str:
        """Returns the champion that the registry names if it can be served, else the current one, else the last good
        one."""
        serving_now = self.router.champion if self._routed else None
        for name in (aliases.get(CHAMPION), serving_now, aliases.get(PREVIOUS), self.engine.base):
            if name is not None and await self._bring_up(name, pause):
                return name
        raise EngineError("neither the champion nor the version before it can be loaded; retrying")

    def _route(self, champion: str, wanted: set[str]) -> None:
        """Changes the routing table to `champion` and the `wanted` versions, and retires all others."""
        for name in self._checked.keys() - wanted:
            del self._checked[name]
            self._retire(name)
        routes = replace(
            self.router.routes,
            champion=champion,
            loaded=dict(self._checked),
            previous=self._servable(PREVIOUS),
            challenger=self._servable(CHALLENGER),
            fallen_back=self._aliases.get(BEST_OF_N) == champion,
        )
        if routes != self.router.routes:
            if champion != self.router.champion:
                log.info("champion changed", version=champion, before=self.router.champion)
            elif (k := self._checked[champion].k) != self.router.routes.loaded[champion].k:
                log.info("champion samples another number of candidates", version=champion, k=k)
            self.router.publish(routes)
        self._routed = True
        self.metrics.routed(self.router.aliases(), len(routes.loaded))

    def _servable(self, alias: str) -> str | None:
        name = self._aliases.get(alias)
        return name if name in self._checked else None

    async def _fits(self, name: str) -> bool:
        """Returns whether `name` is loaded or fits beside the loaded versions."""
        return name in self._checked or not self.engine.displaces((await self.registry.get(name)).files)

    async def _bring_up(self, name: str, pause: AsyncExitStack) -> bool:
        """Tries to load and check `name`, unless it was refused recently; returns whether it is loaded."""
        if name in self._checked:
            return True
        refusal = self.refused.get(name)
        if refusal is not None and time.monotonic() < refusal.retry_at:
            return False
        start = time.monotonic()
        try:
            version = await self._load(name, pause)
        except _NotServable as error:
            self.metrics.swapped("refused", time.monotonic() - start)
            await self._refuse(name, str(error), refusal)
            return False
        self._checked[name] = Loaded(name, version.created, version.parent, version.k)
        self.refused.pop(name, None)
        self.metrics.swapped("served", time.monotonic() - start)
        log.info("version loaded and checked", version=name, seconds=round(time.monotonic() - start, 3))
        return True

    async def _load(self, name: str, pause: AsyncExitStack) -> Version:
        """Verifies, loads and checks a version.

        Raises:
            _NotServable: Anything failed. A bad version must not stop the service.
        """
        try:
            version = await self.registry.verify(name)
            self._check_base(version)
            self._check_name(version)
            displaced = self.engine.displaces(version.files)
            if displaced and not self.router.resting:
                await pause.enter_async_context(self._pause(name))
            try:
                await self.engine.load(version.files)
                await check_golden_prompts(self.engine, name, deadline=self.golden_deadline)
            finally:
                if displaced:
                    loaded = await self.engine.loaded()
                    self._checked = {name: one for name, one in self._checked.items() if name in loaded}
        except UserError as error:
            raise _NotServable(str(error)) from error
        except Exception as error:
            raise _NotServable(f"{type(error).__name__}: {error}") from error
        return version

    @asynccontextmanager
    async def _pause(self, name: str) -> AsyncIterator[None]:
        """Waits for running requests, and lets new ones wait until the block ends."""
        start = time.monotonic()
        log.info("pausing requests to load other weights", version=name, in_flight=self.router.in_flight)
        try:
            async with self.router.paused(self.drain_deadline):
                yield
        finally:
            seconds = time.monotonic() - start
            self.metrics.paused(seconds)
            log.info("requests resumed", version=name, paused=round(seconds, 3), waiting=self.router.waiting)

    def _check_base(self, version: Version) -> None:
        base = version.name if version.kind is VersionKind.BASE else version.base
        if base != self.engine.base:
            raise UserError(
                f"version {version.name!r} belongs to the base {base!r}, but this service runs {self.engine.base!r}: "
                "start the service with that base, or promote a version of this one"
            )

    def _check_name(self, version: Version) -> None:
        """Raises UserError if the engine has loaded other files under that name, because its caches may still contain
        them."""
        if self._used.setdefault(version.name, version.digest) != version.digest:
            raise UserError(
                f"the files of version {version.name!r} in the registry (digest {version.digest[:12]}) differ from "
                f"those that this service loaded under that name (digest {self._used[version.name][:12]}), as after "
                "restoring the database: restart the service to serve it"
            )

    async def _drop_changed(self, targets: dict[str, Target], pause: AsyncExitStack) -> None:
        """Removes versions whose names refer to other files now from the routing table, before anything else is
        loaded."""
        changed = [
            name
            for name, digest, _ in set(targets.values())
            if name in self._checked and digest and self._used.get(name, digest) != digest
        ]
        for name in changed:
            log.error("version name refers to other files now; no longer serving it", version=name)
            del self._checked[name]
            self._retire(name)
        if not changed:
            return
        candidates = (self.router.champion, self.router.routes.previous, self.engine.base)
        if (left := next((name for name in candidates if name in self._checked), None)) is not None:
            self._route(left, set(self._checked))
        elif not self.router.resting:
            await pause.enter_async_context(self._pause(changed[0]))

    async def _refuse(self, name: str, reason: str, before: Refusal | None) -> None:
        attempts, pause = before.attempts if before else 1, RETRY_ENGINE
        if await self._can_draw():
            attempts = before.attempts + 1 if before else 1
            pause = min(RETRY_FIRST * 2 ** (attempts - 1), RETRY_LONGEST)
        self.refused[name] = Refusal(name, reason, datetime.now(UTC), attempts, time.monotonic() + pause)
        log.error("version refused", version=name, reason=reason, router=self.router.champion, retry_in=pause)
        self._retire(name)
        if before is None:
            await self.registry.record("swap_failed", name, f"service on {gethostname()}", reason=reason)

    async def _can_draw(self) -> bool:
        try:
            await self.engine.check()
        except EngineError:
            return False
        return True

    def _retire(self, name: str) -> None:
        task = asyncio.create_task(self._unload_when_drained(name), name=f"retire {name}")
        self._retiring[task] = name
        task.add_done_callback(self._retiring.pop)

    async def _unload_when_drained(self, name: str) -> None:
        await self.router.drained(name)
        async with self._lock:
            # It may be needed again, or may have been retired again since; then that retirement unloads it.
            if name in self._checked or self.router.references(name):
                return
            try:
                await self.engine.unload(name)
            except Exception:
                log.exception("cannot unload version", version=name)
            else:
                self.metrics.retired(name)
                log.info("version unloaded", version=name)
