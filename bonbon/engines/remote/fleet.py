"""Many servers as one: balanced, watched, and kept with every version that is wanted."""

import asyncio
import random
from collections.abc import Collection, Sequence
from contextlib import suppress

import structlog

from bonbon.engines.engine import VersionFiles
from bonbon.engines.remote.protocol_errors import Elsewhere, NotThere
from bonbon.engines.remote.replica import Replica
from bonbon.errors import BonbonError, EngineError, UnknownVersion, UserError

FIRST_LOOK = 30.0
"""Seconds that a start waits for servers that are slow to answer."""
RELOAD_PAUSE = 10.0
"""Seconds before a version that a server would not load is offered to it again."""

log = structlog.get_logger(__name__)


class Fleet:
    """The servers, and the versions that every one of them should have.

    Args:
        base: name of the base version.
        interval: seconds between two looks at a server.
        quorum: see `needed`.
    """

    def __init__(self, replicas: Sequence[Replica], base: str, *, interval: float, quorum: float) -> None:
        self.replicas, self.base = replicas, base
        self.wanted: dict[str, VersionFiles] = {}
        self._interval, self._quorum = interval, quorum
        self._looked = {replica.url: asyncio.Event() for replica in replicas}
        self._due = {replica.url: asyncio.Event() for replica in replicas}
        self._refused: dict[tuple[str, str], float] = {}
        self._watchers: list[asyncio.Task[None]] = []

    @property
    def up(self) -> list[Replica]:
        """The servers that get requests."""
        return [replica for replica in self.replicas if replica.reason is None]

    @property
    def context_length(self) -> int:
        """The shortest of all servers'. Raises EngineError, which clients are shown, when none has answered yet."""
        known = [replica.context_length for replica in self.replicas if replica.context_length]
        if not known:
            raise EngineError("no server of the fleet has answered yet; try again")
        return min(known)

    def why(self) -> str:
        """Why there is nothing to draw with."""
        reasons = "; ".join(f"{replica.url}: {replica.reason}" for replica in self.replicas if replica.reason)
        return f"no server of the fleet can draw ({reasons})"

    async def start(self) -> None:
        """Watch every server; returns when each was looked at once, or after FIRST_LOOK seconds."""
        self._watchers = [asyncio.create_task(self._watch(replica), name=replica.url) for replica in self.replicas]
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK):
                for looked in self._looked.values():
                    await looked.wait()

    async def stop(self) -> None:
        """Stop watching. What is loaded stays loaded: other gateways may draw from it."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers = []
        for replica in self.replicas:
            await replica.server.close()

    def pick(self, version: str, but: Collection[Replica] = ()) -> Replica | None:
        """The server with the fewest candidates under way among those that have the version; None when none is left.

        Raises UnknownVersion when nobody wants the version.
        """
        if version != self.base and version not in self.wanted:
            raise UnknownVersion(f"version {version!r} is not loaded", param="model")
        able = [r for r in self.up if r not in but and (version == self.base or version in r.versions)]
        return min(able, key=lambda replica: (replica.outstanding, random.random()), default=None)

    def needed(self, up: int) -> int:
        """How many of `up` servers must have a version before it counts as loaded: more than `quorum` of them."""
        return min(up, int(up * self._quorum) + 1)

    async def load(self, version: VersionFiles) -> None:
        """Have a version loaded and checked on all servers that are up; the others get it when they come back.

        Raises UserError or EngineError when too few have it then: see `needed`.
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
            raise kind(f"{have} of {len(up)} servers serve {version.name}, and {needed} must: {reasons}")
        for error in failures:
            log.warning("a server lacks a version", version=version.name, error=str(error))

    async def unload(self, name: str) -> None:
        """Have every server forget a version. One that cannot be reached is left to its restart."""
        self.wanted.pop(name, None)
        found = await asyncio.gather(*(replica.forget(name) for replica in self.up), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                log.warning("a version may still be loaded", version=name, error=str(error))

    async def failed(self, replica: Replica, error: Elsewhere, version: str) -> bool:
        """Take note of a draw that failed; True when the same server may be asked again."""
        if isinstance(error, NotThere) and version in self.wanted:
            replica.versions.discard(version)
            try:
                await replica.ensure(self.wanted[version])
            except BonbonError as refused:
                log.warning("a server lost a version", version=version, error=str(refused))
            else:
                return True
        if error.down:
            replica.down(str(error))
        self._due[replica.url].set()
        return False

    async def _watch(self, replica: Replica) -> None:
        due = self._due[replica.url]
        while True:
            due.clear()
            try:
                await self._look(replica)
            except Exception:
                log.exception("cannot look after a server", url=replica.url)
                replica.down("its answers are not understood; see the log")
            self._looked[replica.url].set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await due.wait()

    async def _look(self, replica: Replica) -> None:
        """Look at a server, and give it what it lacks."""
        before = replica.reason
        await replica.look()
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
