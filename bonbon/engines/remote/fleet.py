"""A fleet of servers behind one engine: balanced, monitored, and kept loaded with every wanted version."""

import asyncio
import random
from collections.abc import Collection, Sequence
from contextlib import suppress

import structlog

from bonbon.concurrency.shielded import end
from bonbon.engines.engine import VersionFiles
from bonbon.engines.remote.protocol_errors import ServerFailed, VersionMissing
from bonbon.engines.remote.replica import Replica
from bonbon.errors import BonbonError, EngineError, UnknownVersion, UserError

START_TIMEOUT = 30.0
"""The seconds that `start` waits for the first health check of every server."""
RELOAD_PAUSE = 10.0
"""The seconds before a server that refused a version is asked to load it again."""

log = structlog.get_logger(__name__)


class Fleet:
    """The servers, and the versions that each of them should have.

    Args:
        base: The name of the base version.
        interval: The seconds between two health checks of a server.
        quorum: The share of servers that must have a version; see `needed`.
    """

    def __init__(self, replicas: Sequence[Replica], base: str, *, interval: float, quorum: float) -> None:
        self.replicas, self.base = replicas, base
        self.wanted: dict[str, VersionFiles] = {}
        self._interval, self._quorum = interval, quorum
        self._checked = {replica.url: asyncio.Event() for replica in replicas}
        self._check_now = {replica.url: asyncio.Event() for replica in replicas}
        self._refused: dict[tuple[str, str], float] = {}
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def up(self) -> list[Replica]:
        """Returns the servers that get requests."""
        return [replica for replica in self.replicas if replica.reason is None]

    @property
    def context_length(self) -> int:
        """Returns the shortest context of all servers.

        Raises EngineError, which clients see, when none has answered yet.
        """
        known = [replica.context_length for replica in self.replicas if replica.context_length]
        if not known:
            raise EngineError("no server of the fleet has answered yet; try again")
        return min(known)

    def why(self) -> str:
        """Returns the reasons why no server can sample."""
        reasons = "; ".join(f"{replica.url}: {replica.reason}" for replica in self.replicas if replica.reason)
        return f"no server of the fleet is available ({reasons})"

    async def start(self) -> None:
        """Starts monitoring; returns when each server was checked once, or after START_TIMEOUT seconds."""
        self._watchers = [asyncio.create_task(self._watch(replica), name=replica.url) for replica in self.replicas]
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT):
                for checked in self._checked.values():
                    await checked.wait()

    async def stop(self) -> None:
        """Stops monitoring. Versions stay loaded, because other gateways may use them."""
        await end(*self._watchers)
        self._watchers = []
        for replica in self.replicas:
            await replica.server.close()

    def pick(self, version: str, excluded: Collection[Replica] = ()) -> Replica | None:
        """Returns the least busy server that has the version, or None.

        Raises UnknownVersion when the version was never loaded, or has been unloaded.
        """
        if version != self.base and version not in self.wanted:
            raise UnknownVersion(f"version {version!r} is not loaded", param="model")
        able = [r for r in self.up if r not in excluded and (version == self.base or version in r.versions)]
        return min(able, key=lambda replica: (replica.outstanding, random.random()), default=None)

    def needed(self, up: int) -> int:
        """Returns how many of `up` servers must have a version for it to count as loaded: more than `quorum`."""
        return min(up, int(up * self._quorum) + 1)

    async def load(self, version: VersionFiles) -> None:
        """Loads and checks a version on all servers that are up; the others get it when they come back.

        Raises UserError or EngineError when too few servers have it afterwards; see `needed`.
        """
        up = self.up
        if not up:
            raise EngineError(self.why())
        new = version.name not in self.wanted
        self.wanted[version.name] = version
        try:
            found = await asyncio.gather(*(replica.ensure(version) for replica in up), return_exceptions=True)
        except asyncio.CancelledError:
            if new:
                self.wanted.pop(version.name, None)
            raise
        failures = [error for error in found if error is not None]
        have, needed = len(up) - len(failures), self.needed(len(up))
        if have < needed:
            del self.wanted[version.name]
            kind = UserError if any(isinstance(error, UserError) for error in failures) else EngineError
            reasons = "; ".join(map(str, failures))
            raise kind(f"{have} of {len(up)} servers serve {version.name}, but {needed} must: {reasons}")
        for error in failures:
            log.warning("a server lacks a version", version=version.name, error=str(error))

    async def unload(self, name: str) -> None:
        """Unloads a version from every server. A server that cannot be reached loses it when it restarts."""
        self.wanted.pop(name, None)
        found = await asyncio.gather(*(replica.forget(name) for replica in self.up), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                log.warning("a server may still have a version loaded", version=name, error=str(error))

    async def failed(self, replica: Replica, error: ServerFailed, version: str) -> bool:
        """Handles a failed request; returns whether the same server may be tried again."""
        if isinstance(error, VersionMissing) and version in self.wanted:
            replica.versions.discard(version)
            try:
                await replica.ensure(self.wanted[version])
            except BonbonError as refused:
                log.warning("a server lost a version", version=version, error=str(refused))
            else:
                return True
        if error.down:
            replica.down(str(error))
        self._check_now[replica.url].set()
        return False

    async def _watch(self, replica: Replica) -> None:
        check_now = self._check_now[replica.url]
        while True:
            check_now.clear()
            try:
                await self._check_health(replica)
            except Exception:
                log.exception("the health check of a server failed", url=replica.url)
                replica.down("its answers to the health check are invalid; see the log")
            self._checked[replica.url].set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await check_now.wait()

    async def _check_health(self, replica: Replica) -> None:
        """Checks a server's health, and loads the versions that it lacks."""
        before = replica.reason
        await replica.check_health()
        if replica.reason != before:
            log.info("server up" if replica.reason is None else "server down", url=replica.url, reason=replica.reason)
        if replica.reason is not None:
            return
        now = asyncio.get_running_loop().time()
        for version in list(self.wanted.values()):
            key = (replica.url, version.name)
            if version.name in replica.versions or self._refused.get(key, 0.0) > now:
                continue
            try:
                await replica.ensure(version)
            except BonbonError as error:
                self._refused[key] = now + RELOAD_PAUSE
                log.warning("a server lacks a version", version=version.name, error=str(error))
            else:
                log.info("server has a version", url=replica.url, version=version.name)
