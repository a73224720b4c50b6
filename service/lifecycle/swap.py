"""Hot swap: follow the registry's aliases without failing a request. docs/swap.md says what is guaranteed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from socket import gethostname

import structlog

from bonbon.engines.engine import Engine, VersionKind
from bonbon.engines.golden_prompts import check_golden_prompts
from bonbon.errors import EngineError, UserError
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import BEST_OF_N, CHALLENGER, CHAMPION, PREVIOUS, Target, Version
from service.metrics.process_metrics import Metrics
from service.routing.router import Loaded, Router

log = structlog.get_logger(__name__)

RETRY_FIRST, RETRY_LONGEST = 30.0, 600.0
"""Seconds before a refused version is tried again, doubling from the first to the longest."""
RETRY_ENGINE = 2.0
"""Seconds before that when the engine itself cannot draw: then the version is not to blame."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version that an alias names is not served here. `retry_at` is on the monotonic clock."""

    version: str
    reason: str
    time: datetime
    attempts: int
    retry_at: float


class _NotServable(Exception):
    """A version cannot be brought up; the message says why."""


class Swapper:
    """Keeps what is served equal to what the registry's aliases name.

    Wanted are the champion, `previous` (so that a rollback needs no load), the challenger and the base. A version is
    loaded under its own name, checked, and only then routed to; what is no longer wanted leaves the routing table
    first, and the engine when its last request has ended. A name that means other files than before, for the registry
    was restored, is served no more by this process.

    Where the engine has one place for a version and what is served, requests wait while it is loaded. Then only the
    champion is wanted, and what fits beside it.

    Args:
        poll: seconds between looks at the registry.
        drain_deadline: seconds that requests in flight have to end before such a load.
        golden_deadline: seconds a version has to answer the golden prompts.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        serving: Router,
        metrics: Metrics,
        *,
        poll: float,
        golden_deadline: float = 60.0,
        drain_deadline: float = 30.0,
    ) -> None:
        self.engine, self.registry, self.serving, self.metrics = engine, registry, serving, metrics
        self.poll, self.golden_deadline, self.drain_deadline = poll, golden_deadline, drain_deadline
        self.refused: dict[str, Refusal] = {}
        self._aliases: dict[str, str] = {}
        self._checked: dict[str, Loaded] = dict(serving.routes.loaded)
        self._routed = False
        self._settled: dict[str, Target] | None = None
        self._used: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[None], str] = {}

    @property
    def draining(self) -> frozenset[str]:
        """Versions that new requests no longer reach, and that are not unloaded yet."""
        return frozenset(self._retiring.values())

    async def start(self) -> None:
        """Serve what the registry names, then watch it. The base is registered and loaded already."""
        base = await self.registry.get(self.engine.base)
        self._checked[base.name] = Loaded(base.name, base.created, base.parent)
        await self.converge()
        self._watcher = asyncio.create_task(self._watch(), name="swapper")

    async def stop(self) -> None:
        """Stop watching. What is loaded stays loaded; the engine's own stop frees it."""
        tasks = [task for task in (self._watcher, *self._retiring) if task is not None]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def converge(self, *, retry: bool = False) -> None:
        """Serve what the aliases name, as far as it can be served; when this returns, the aliases read were current.

        A version that cannot be served never raises: it is in `refused`, and the champion of before keeps answering.
        With `retry`, what was refused is tried again now.
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
                log.exception("cannot follow the registry; what is served stays")
                pause = max(self.poll, 5.0)

    async def _turn(self, pause: AsyncExitStack) -> bool:
        """One pass; False when the aliases moved meanwhile and it must be made again.

        `pause` is entered where requests must wait; it ends when the champion is routed to.
        """
        targets = await self.registry.targets()
        if targets == self._settled and not self._retry_due():
            return True
        aliases = {alias: target.version for alias, target in targets.items()}
        await self._let_go_of_changed(targets, pause)
        for target in targets.values():
            if (loaded := self._checked.get(target.version)) is not None:
                self._checked[target.version] = replace(loaded, k=target.k)
        if aliases != self._aliases:
            # Somebody acted: give what was refused another chance.
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

    def _retry_due(self) -> bool:
        return any(time.monotonic() >= refusal.retry_at for refusal in self.refused.values())

    async def _choose_champion(self, aliases: dict[str, str], pause: AsyncExitStack) -> str:
        """The champion that the registry names, else the one that serves now, else the last good one."""
        serving_now = self.serving.champion if self._routed else None
        for name in (aliases.get(CHAMPION), serving_now, aliases.get(PREVIOUS), self.engine.base):
            if name is not None and await self._bring_up(name, pause):
                return name
        raise EngineError("neither the champion nor what served before it can be loaded; it is tried again")

    def _route(self, champion: str, wanted: set[str]) -> None:
        """Flip the routing table to `champion` and the `wanted` versions, and retire the rest."""
        for name in self._checked.keys() - wanted:
            del self._checked[name]
            self._retire(name)
        routes = replace(
            self.serving.routes,
            champion=champion,
            loaded=dict(self._checked),
            previous=self._servable(PREVIOUS),
            challenger=self._servable(CHALLENGER),
            fallen_back=self._aliases.get(BEST_OF_N) == champion,
        )
        if routes != self.serving.routes:
            if champion != self.serving.champion:
                log.info("champion flipped", version=champion, before=self.serving.champion)
            elif (k := self._checked[champion].k) != self.serving.routes.loaded[champion].k:
                log.info("the champion answers with the best of another number of draws", version=champion, k=k)
            self.serving.publish(routes)
        self._routed = True
        self.metrics.routed(self.serving.aliases(), len(routes.loaded))

    def _servable(self, alias: str) -> str | None:
        name = self._aliases.get(alias)
        return name if name in self._checked else None

    async def _fits(self, name: str) -> bool:
        """Whether `name` is loaded or can be, beside what is."""
        return name in self._checked or not self.engine.displaces((await self.registry.get(name)).files)

    async def _bring_up(self, name: str, pause: AsyncExitStack) -> bool:
        """Whether `name` is loaded and checked, after trying, unless it was refused a short while ago."""
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
        """Verify, load, check. Raises _NotServable for whatever goes wrong: a bad version must not end the service."""
        try:
            version = await self.registry.verify(name)
            self._check_base(version)
            self._check_name(version)
            displaced = self.engine.displaces(version.files)
            if displaced and not self.serving.resting:
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
        """Let what is in flight end, and requests wait until the block ends."""
        start = time.monotonic()
        log.info("requests wait: other weights are loaded", version=name, in_flight=self.serving.in_flight)
        try:
            async with self.serving.paused(self.drain_deadline):
                yield
        finally:
            seconds = time.monotonic() - start
            self.metrics.paused(seconds)
            log.info("requests go on", version=name, paused=round(seconds, 3), waiting=self.serving.waiting)

    def _check_base(self, version: Version) -> None:
        base = version.name if version.kind is VersionKind.BASE else version.base
        if base != self.engine.base:
            raise UserError(
                f"version {version.name!r} belongs to the base {base!r}, and this service runs {self.engine.base!r}; "
                f"serve with that base, or promote a version of this one"
            )

    def _check_name(self, version: Version) -> None:
        """Raise UserError when the engine has had other files under that name: its caches may still have them."""
        if self._used.setdefault(version.name, version.digest) != version.digest:
            raise UserError(
                f"version {version.name!r} has other files in the registry (digest {version.digest[:12]}) than this "
                f"service has loaded under that name (digest {self._used[version.name][:12]}): was the database "
                "restored? Restart the service to serve it"
            )

    async def _let_go_of_changed(self, targets: dict[str, Target], pause: AsyncExitStack) -> None:
        """Route nothing more to versions whose names mean other files now, before anything else is loaded."""
        changed = [
            name
            for name, digest, _ in set(targets.values())
            if name in self._checked and digest and self._used.get(name, digest) != digest
        ]
        for name in changed:
            log.error("a version's name means other files now; it is served no more", version=name)
            del self._checked[name]
            self._retire(name)
        if not changed:
            return
        candidates = (self.serving.champion, self.serving.routes.previous, self.engine.base)
        if (left := next((name for name in candidates if name in self._checked), None)) is not None:
            self._route(left, set(self._checked))
        elif not self.serving.resting:
            await pause.enter_async_context(self._pause(changed[0]))

    async def _refuse(self, name: str, reason: str, before: Refusal | None) -> None:
        attempts, pause = before.attempts if before else 1, RETRY_ENGINE
        if await self._can_draw():
            attempts = before.attempts + 1 if before else 1
            pause = min(RETRY_FIRST * 2 ** (attempts - 1), RETRY_LONGEST)
        self.refused[name] = Refusal(name, reason, datetime.now(UTC), attempts, time.monotonic() + pause)
        log.error("version refused", version=name, reason=reason, serving=self.serving.champion, retry_in=pause)
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
        await self.serving.drained(name)
        async with self._lock:
            # It may have been wanted again since, and even retired again: then that retirement unloads it.
            if name in self._checked or self.serving.references(name):
                return
            try:
                await self.engine.unload(name)
            except Exception:
                log.exception("unload failed", version=name)
            else:
                self.metrics.retired(name)
                log.info("version unloaded", version=name)
