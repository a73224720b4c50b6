"""Which version answers which model name, and how many requests hold each version."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from bonbon.errors import EngineError, UnknownVersion

MOST_WAITING = 1000
"""Requests that may wait while the service is paused; more are told to come back."""


class Asked(StrEnum):
    """What kind of model name a request used."""

    ALIAS = "alias"
    BASE = "base"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that can be drawn from now. As champion it answers with the best of `k` draws."""

    name: str
    created: datetime
    parent: str | None = None
    k: int = 1


@dataclass(frozen=True, slots=True)
class Routes:
    """The routing table: never changed, only replaced whole, so that a request sees one state of it.

    `champion` is the version that answers for the service's alias, with the best of its own `k` draws unless
    `fallen_back`. Every name in the table is in `loaded`.
    """

    base: str
    champion: str
    loaded: Mapping[str, Loaded]
    previous: str | None = None
    challenger: str | None = None
    fallen_back: bool = False

    @property
    def distilled(self) -> bool:
        """Whether the champion has learnt best-of-n."""
        return self.champion != self.base

    @property
    def best_of_n(self) -> bool:
        """Whether the alias answers with best-of-n: the champion has not learnt it, or could not keep it up."""
        return not self.distilled or self.fallen_back


@dataclass(frozen=True, slots=True)
class Route:
    """How to answer a request: draw `best_of` candidates from `version`. `model` is the name that was asked for."""

    model: str
    version: str
    best_of: int
    asked: Asked


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One entry of the model list: a name a request may use, and the version it means now. `created` is Unix time."""

    id: str
    created: int
    version: str
    parent: str | None


class Router:
    """The routing table, and the references that requests hold on versions.

    What takes or gives back a reference is synchronous, so on the service's one event loop each call is atomic: a
    request takes its reference in the same step in which it reads the table, and no version can be unloaded in between.

    Args:
        base: the engine's base version; loaded, and the champion, until something else is published.
        alias: the model name that means: whatever is best now.
        n: candidates that the alias draws while the champion is the base.
        k: candidates that the alias draws of every other champion; None: as many as the gate found it to need.
    """

    def __init__(self, base: str, *, alias: str, n: int, k: int | None = None) -> None:
        self._routes = Routes(base, base, {base: Loaded(base, datetime.now(UTC))})
        self.alias, self.n, self._k = alias, n, k
        self._references: Counter[str] = Counter()
        self._idle: dict[str, asyncio.Event] = {}
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    @property
    def routes(self) -> Routes:
        """The table as it is now."""
        return self._routes

    @property
    def champion(self) -> str:
        """The version that answers for the alias."""
        return self._routes.champion

    @property
    def k(self) -> int:
        """Candidates that the alias draws for one choice now."""
        return self.n if self._routes.best_of_n else self.champion_k

    @property
    def champion_k(self) -> int:
        """Candidates from which the champion answers while it has not fallen back on best-of-n."""
        return self._k if self._k is not None else self._routes.loaded[self._routes.champion].k

    @property
    def k_is_fixed(self) -> bool:
        """Whether a setting says how many candidates the alias draws of a distilled champion."""
        return self._k is not None

    @property
    def in_flight(self) -> int:
        """References held now, over all versions."""
        return self._references.total()

    def publish(self, routes: Routes) -> None:
        """Route new requests by `routes`; requests in flight keep the version they hold."""
        self._routes = routes

    @asynccontextmanager
    async def paused(self, deadline: float) -> AsyncIterator[None]:
        """Let nothing begin until the block ends; it is entered when everything that has begun is over.

        Raises EngineError when that takes longer than `deadline` seconds. One pause at a time.
        """
        self._open.clear()
        try:
            try:
                async with asyncio.timeout(deadline):
                    await self.all_drained()
            except TimeoutError as error:
                raise EngineError(
                    f"{self.in_flight} requests in flight did not end within {deadline:g} s; they go on, and so does "
                    "what they draw from"
                ) from error
            yield
        finally:
            self._open.set()

    @property
    def resting(self) -> bool:
        """Whether a pause has begun and not ended."""
        return not self._open.is_set()

    async def admitted(self) -> None:
        """Return when a request may begin; see `admission`."""
        async for _ in self.admission():
            pass

    async def admission(self, tick: float | None = None) -> AsyncGenerator[None]:
        """Ends when a request may begin, in the step in which it takes its reference; one item every `tick` seconds.

        Raises EngineError when too many wait already.
        """
        if self._open.is_set():
            return
        if self.waiting >= MOST_WAITING:
            raise EngineError("other weights are being loaded, and too many requests wait for them; try again")
        self.waiting += 1
        try:
            while not self._open.is_set():
                try:
                    async with asyncio.timeout(tick):
                        await self._open.wait()
                except TimeoutError:
                    yield
        finally:
            self.waiting -= 1

    @contextmanager
    def plan(self, model: str, *, n: int = 1, best_of: int | None = None, learnt: bool = True) -> Iterator[Route]:
        """How to answer a request for `model` that wants `n` choices; its version stays loaded until the block ends.

        The alias draws best-of-n while the champion is the base or has fallen back on it, and otherwise best-of-k of
        the champion; versions asked for by name draw one candidate per choice. A `best_of` given overrides that.
        `learnt`: what versions learn is what this request is judged by; where it is not, the alias means best-of-n of
        the base, whoever is champion.

        Raises UnknownVersion, listing what there is.
        """
        version, asked = self.resolve(model)
        if model == self.alias and not learnt and self._routes.base in self._routes.loaded:
            version = self._routes.base  # not loaded while other weights have its place: then n of those
        with self.hold(version):
            yield Route(model, version, self.draws(model, n=n, best_of=best_of, learnt=learnt), asked)

    def draws(self, model: str, *, n: int = 1, best_of: int | None = None, learnt: bool = True) -> int:
        """How many candidates a request for `model` draws as things are now; see `plan`."""
        if best_of is not None:
            return best_of
        if model == self.alias and not learnt:
            return max(n, self.n)
        return max(n, self.k if model in (self.alias, "champion") else 1)

    def resolve(self, model: str) -> tuple[str, Asked]:
        """The version that `model` means now. Raises UnknownVersion, listing what there is."""
        if model == "base":
            return self._routes.base, Asked.BASE
        if model in (aliases := self.aliases()):
            return aliases[model], Asked.ALIAS
        if model in self._routes.loaded:
            return model, Asked.VERSION
        known = ", ".join(served.id for served in self.models())
        raise UnknownVersion(f"model {model!r} is not served here; there are: {known}", param="model")

    @contextmanager
    def hold(self, version: str) -> Iterator[None]:
        """Keep `version` loaded while the block runs. Raises UnknownVersion when it is not loaded."""
        if version not in self._routes.loaded:
            raise UnknownVersion(f"version {version!r} is not loaded", param="model")
        self._references[version] += 1
        self._idle.setdefault(version, asyncio.Event())
        try:
            yield
        finally:
            self._references[version] -= 1
            if not self._references[version]:
                self._idle.pop(version).set()

    def references(self, version: str) -> int:
        """How many requests and audits hold `version`."""
        return self._references[version]

    async def drained(self, version: str) -> None:
        """Return when nothing holds `version`."""
        while (idle := self._idle.get(version)) is not None:
            await idle.wait()

    async def all_drained(self) -> None:
        """Return when nothing holds any version."""
        while self._idle:
            await self.drained(next(iter(self._idle)))

    def aliases(self) -> dict[str, str]:
        """Alias -> version, those that are set: the service's own, `champion`, `previous`, `challenger`."""
        routes = self._routes
        named = {
            self.alias: routes.champion,
            "champion": routes.champion,
            "previous": routes.previous,
            "challenger": routes.challenger,
        }
        return {alias: version for alias, version in named.items() if version is not None}

    def models(self) -> list[ServedModel]:
        """Every name that a request may use: the aliases, `base`, and the versions that are loaded."""
        names = {**self.aliases(), "base": self._routes.base} | {name: name for name in self._routes.loaded}
        return [self._served(model, version) for model, version in names.items() if version in self._routes.loaded]

    def _served(self, model: str, version: str) -> ServedModel:
        loaded = self._routes.loaded[version]
        return ServedModel(model, int(loaded.created.timestamp()), version, loaded.parent)
