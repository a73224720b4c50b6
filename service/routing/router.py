"""Maps model names to versions, and counts the requests that use each version."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from bonbon.errors import EngineError, UnknownVersion

MAX_WAITING = 1000
"""Maximum number of requests that wait while the service is paused; further requests are refused."""


class Asked(StrEnum):
    """The kind of model name in a request."""

    ALIAS = "alias"
    BASE = "base"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that can generate candidates now. As champion it samples `k` candidates and answers with the best."""

    name: str
    created: datetime
    parent: str | None = None
    k: int = 1


@dataclass(frozen=True, slots=True)
class Routes:
    """The routing table. It is never modified, only replaced as a whole, so that a request sees one consistent state.

    Attributes:
        champion: The version behind the service's alias. It answers with the best of its own `k` candidates unless
            `fallen_back`.
        loaded: All loaded versions. Every name in the table is one of them.
    """

    base: str
    champion: str
    loaded: Mapping[str, Loaded]
    previous: str | None = None
    challenger: str | None = None
    fallen_back: bool = False

    @property
    def distilled(self) -> bool:
        """Whether the champion is a distilled version."""
        return self.champion != self.base

    @property
    def best_of_n(self) -> bool:
        """Whether the alias answers with best-of-n, because the champion is the base or has fallen back."""
        return not self.distilled or self.fallen_back


@dataclass(frozen=True, slots=True)
class Route:
    """How to answer a request: sample `best_of` candidates from `version`. `model` is the name in the request."""

    model: str
    version: str
    best_of: int
    asked: Asked


@dataclass(frozen=True, slots=True)
class ServedModel:
    """An entry of the model list: a model name and the version behind it. `created` is Unix time in seconds."""

    id: str
    created: int
    version: str
    parent: str | None


class Router:
    """The routing table, and the references that requests hold to versions.

    Taking and releasing references is synchronous, so each call is atomic on the service's event loop: a request takes
    its reference in the same step in which it reads the table, and no version can be unloaded in between.

    Args:
        base: The engine's base version. It is loaded, and is the champion until another table is published.
        alias: The model name that always means the champion.
        n: Candidates that the alias samples while the champion is the base.
        k: Candidates that the alias samples from any other champion. With None, the version's own k.
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
        """The current routing table."""
        return self._routes

    @property
    def champion(self) -> str:
        """The version that answers for the alias."""
        return self._routes.champion

    @property
    def k(self) -> int:
        """Candidates that the alias samples for one choice now."""
        return self.n if self._routes.best_of_n else self.champion_k

    @property
    def champion_k(self) -> int:
        """Candidates that the champion samples unless it has fallen back to best-of-n."""
        return self._k if self._k is not None else self._routes.loaded[self._routes.champion].k

    @property
    def k_is_fixed(self) -> bool:
        """Whether a setting fixes the number of candidates that the alias samples from a distilled champion."""
        return self._k is not None

    @property
    def in_flight(self) -> int:
        """References held now, over all versions."""
        return self._references.total()

    def publish(self, routes: Routes) -> None:
        """Routes new requests by `routes`; running requests keep the version that they hold."""
        self._routes = routes

    @asynccontextmanager
    async def paused(self, deadline: float) -> AsyncIterator[None]:
        """Runs the block while no request runs: it waits for running requests to finish and lets new ones wait.

        Only one pause can be active at a time.

        Raises:
            EngineError: Running requests do not finish within `deadline` seconds.
        """
        self._open.clear()
        try:
            try:
                async with asyncio.timeout(deadline):
                    await self.all_drained()
            except TimeoutError as error:
                raise EngineError(
                    f"{self.in_flight} running requests did not finish within {deadline:g} s; they continue with the "
                    "loaded version"
                ) from error
            yield
        finally:
            self._open.set()

    @property
    def resting(self) -> bool:
        """Whether a pause is active."""
        return not self._open.is_set()

    async def admitted(self) -> None:
        """Waits until a request may start; see `admission`."""
        async for _ in self.admission():
            pass

    async def admission(self, tick: float | None = None) -> AsyncGenerator[None]:
        """Ends when a request may start, in the same step in which the request takes its reference.

        Yields:
            An item every `tick` seconds.

        Raises:
            EngineError: Too many requests are waiting already.
        """
        if self._open.is_set():
            return
        if self.waiting >= MAX_WAITING:
            raise EngineError("another version is being loaded and too many requests are waiting for it; try again")
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
    def route(self, model: str, *, n: int = 1, best_of: int | None = None, learned: bool = True) -> Iterator[Route]:
        """Routes a request for `model` with `n` choices. The version stays loaded until the block ends.

        The alias samples n candidates while the champion is the base or has fallen back to best-of-n, and otherwise the
        champion's k; a version requested by name samples one candidate per choice. `best_of` overrides this. `learned`
        is whether this request is ranked by the reward that versions learn from. If not, the alias stands for best-of-n
        of the base, whichever version is champion.

        Raises:
            UnknownVersion: The model is not served; the message lists the models that are.
        """
        version, asked = self.resolve(model)
        if model == self.alias and not learned and self._routes.base in self._routes.loaded:
            version = self._routes.base  # it is not loaded while other weights take its place; then best-of-n of those
        with self.hold(version):
            yield Route(model, version, self.draws(model, n=n, best_of=best_of, learned=learned), asked)

    def draws(self, model: str, *, n: int = 1, best_of: int | None = None, learned: bool = True) -> int:
        """Returns how many candidates to sample for a request for `model`; see `route`."""
        if best_of is not None:
            return best_of
        if model == self.alias and not learned:
            return max(n, self.n)
        return max(n, self.k if model in (self.alias, "champion") else 1)

    def resolve(self, model: str) -> tuple[str, Asked]:
        """Returns the version that `model` currently means.

        Raises:
            UnknownVersion: The model is not served; the message lists the models that are.
        """
        if model == "base":
            return self._routes.base, Asked.BASE
        if model in (aliases := self.aliases()):
            return aliases[model], Asked.ALIAS
        if model in self._routes.loaded:
            return model, Asked.VERSION
        known = ", ".join(served.id for served in self.models())
        raise UnknownVersion(f"model {model!r} is not served here; available models: {known}", param="model")

    @contextmanager
    def hold(self, version: str) -> Iterator[None]:
        """Keeps `version` loaded while the block runs.

        Raises:
            UnknownVersion: The version is not loaded.
        """
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
        """Returns how many requests and audits hold `version`."""
        return self._references[version]

    async def drained(self, version: str) -> None:
        """Waits until nothing holds `version`."""
        while (idle := self._idle.get(version)) is not None:
            await idle.wait()

    async def all_drained(self) -> None:
        """Waits until nothing holds any version."""
        while self._idle:
            await self.drained(next(iter(self._idle)))

    def aliases(self) -> dict[str, str]:
        """Returns the version of each alias that is set: the service's own, `champion`, `previous` and `challenger`."""
        routes = self._routes
        named = {
            self.alias: routes.champion,
            "champion": routes.champion,
            "previous": routes.previous,
            "challenger": routes.challenger,
        }
        return {alias: version for alias, version in named.items() if version is not None}

    def models(self) -> list[ServedModel]:
        """Returns every name that a request may use: the aliases, `base`, and the loaded versions."""
        names = {**self.aliases(), "base": self._routes.base} | {name: name for name in self._routes.loaded}
        return [self._served(model, version) for model, version in names.items() if version in self._routes.loaded]

    def _served(self, model: str, version: str) -> ServedModel:
        loaded = self._routes.loaded[version]
        return ServedModel(model, int(loaded.created.timestamp()), version, loaded.parent)
