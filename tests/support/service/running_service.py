"""The real service in this process: fakes for engine and reward, a real SQLite database, real version files."""

import json
import struct
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
from fastapi import FastAPI

from bonbon.engines.engine import Delta, DrawRequest, Engine, Started, VersionFiles, VersionKind
from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import UserError
from bonbon.manifest import make_manifest
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import Version
from bonbon.rewards.reward import Reward
from bonbon.settings import ServiceSettings, Settings
from service.app import create_app
from service.app_state import AppState

BASE = "fake"


class WatchedEngine(FakeEngine):
    """A fake engine that remembers what became of its versions, and whose versions can be bad.

    `nan` versions answer with NaN as log-probability, `silent` ones with no token, `misfits` do not load.
    `torn` lists versions that were unloaded while they were being drawn from, `directories` has what each was loaded
    from.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(BASE, **options)
        self.events: list[tuple[str, str]] = []
        self.directories: dict[str, Path] = {}
        self.drawing: Counter[str] = Counter()
        self.torn: list[str] = []
        self.nan: set[str] = set()
        self.silent: set[str] = set()
        self.misfits: set[str] = set()

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        self.drawing[request.version] += 1
        try:
            async with aclosing(super().draw(request)) as events:
                async for event in events:
                    if isinstance(event, Delta) and request.version in self.nan:
                        yield replace(event, logprobs=(float("nan"),))
                    elif isinstance(event, Delta) and request.version in self.silent:
                        return
                    else:
                        yield event
        finally:
            self.drawing[request.version] -= 1

    async def load(self, version: VersionFiles) -> None:
        if version.name in self.misfits:
            raise UserError(f"{version.name}: tensor shapes do not fit the base")
        await super().load(version)
        self.directories[version.name] = version.directory
        self.events.append(("load", version.name))

    async def unload(self, name: str) -> None:
        if self.drawing[name]:
            self.torn.append(name)
        if name in await self.loaded():
            self.events.append(("unload", name))
        await super().unload(name)


def settings_in(directory: Path, **service: Any) -> Settings:
    """Settings of a service on the fakes that keeps everything in `directory`."""
    service = {"registry_poll": 0.02, "audit_fraction": 0.0, "drain_timeout": 5.0} | service
    return Settings(engine="fake", n=4, data_dir=directory, service=ServiceSettings(**service))


@dataclass(frozen=True)
class Running:
    """A started service and an HTTP client of it."""

    app: FastAPI
    state: AppState
    client: httpx2.AsyncClient

    async def ask(self, model: str = "bonbon", **fields: Any) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Where is my order?"}], "max_tokens": 12}
        return await self.client.post("/v1/chat/completions", json=body | fields)

    async def promoted(self, weights: int, kind: VersionKind = VersionKind.ADAPTER, *, k: int | None = None) -> Version:
        """A new version, made the champion in the registry by somebody else than this service.

        `k`: how many draws the gate found it to need; None leaves it unjudged.
        """
        registry = self.state.registry
        version = await new_version(registry, weights, kind=kind)
        if k is not None:
            await registry.approve(version.name, {"passed": True, "reasons": [], "k": k, "saved": 0.5})
        return await registry.promote(version.name, actor="test", force=k is None)


@asynccontextmanager
async def running(
    settings: Settings, *, engine: Engine, reward: Reward | None = None, retry: float = 5.0
) -> AsyncIterator[Running]:
    """A service that is started and, at the end of the block, stopped in order.

    `retry`: seconds before what failed at the start is tried again.
    """
    app = create_app(settings, engine=engine, reward=reward)
    app.state.bonbon.startup.retry = retry
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield Running(app, app.state.bonbon, client)


async def new_version(
    registry: Registry,
    weights: int,
    *,
    base: str = BASE,
    parent: str | None = None,
    kind: VersionKind = VersionKind.ADAPTER,
    training: dict[str, Any] | None = None,
) -> Version:
    """Register a version whose one weight is `weights`; the gate has not judged it."""
    directory = registry.root.parent / f"trained-{weights}"
    directory.mkdir(exist_ok=True)
    write_adapter(directory, weights)
    return await registry.register(
        base=base,
        parent=parent or base,
        kind=kind,
        directory=directory,
        training=training or {"seed": weights},
        evaluation={},
    )


def version_name(number: int, weights: int, *, base: str = BASE) -> str:
    """What the registry calls the version that `new_version` makes, its base's `number`th."""
    with TemporaryDirectory() as directory:
        write_adapter(Path(directory), weights)
        return f"{base}-bonbon-{number:04d}-{make_manifest(Path(directory)).digest[:8]}"


def write_adapter(directory: Path, weights: int) -> None:
    """A valid safetensors file of one float, and a config beside it."""
    header = json.dumps({"lora": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + struct.pack("<f", weights)
    (directory / "adapter_model.safetensors").write_bytes(data)
    (directory / "adapter_config.json").write_text(json.dumps({"r": 1}))
