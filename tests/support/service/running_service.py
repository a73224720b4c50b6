"""Runs the real service in this process with a fake engine and reward, a real SQLite database and real version
files."""

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
from bonbon.files.manifest import make_manifest
from bonbon.registry.registry import Registry
from bonbon.registry.version_records import Version
from bonbon.rewards.reward import Reward
from bonbon.settings import ServiceSettings, Settings
from service.app import create_app
from service.app_state import AppState
from tests.support.service.hosting import in_process

BASE = "fake"


class WatchedEngine(FakeEngine):
    """A fake engine that records the fate of its versions, which may be faulty.

    `nan` versions answer with NaN as log-probability, `silent` ones with no token, and `misfits` do not load. `torn`
    lists versions that were unloaded while they were being drawn from; `directories` holds the directory that each was
    loaded from.
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
    """Returns settings of a service on the fakes that keeps everything in `directory`."""
    service = {"registry_poll": 0.02, "audit_fraction": 0.0, "drain_timeout": 5.0} | service
    return Settings(engine="fake", n=4, data_dir=directory, service=ServiceSettings(**service))


@dataclass(frozen=True)
class Running:
    """A started service with an HTTP client."""

    app: FastAPI
    state: AppState
    client: httpx2.AsyncClient

    async def ask(self, model: str = "bonbon", **fields: Any) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Where is my order?"}], "max_tokens": 12}
        return await self.client.post("/v1/chat/completions", json=body | fields)

    async def promoted(self, weights: int, kind: VersionKind = VersionKind.ADAPTER, *, k: int | None = None) -> Version:
        """Registers a version and makes it the champion, as another process would.

        `k` is the number of draws in the gate's verdict; None leaves the version unjudged.
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
    """Starts a service, and stops it in order at the end of the block.

    `retry` is the number of seconds before a failed start is retried.
    """
    app = create_app(settings, engine=engine, reward=reward)
    app.state.bonbon.startup.retry = retry
    async with in_process(app) as client:
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
    """Registers a version whose only weight is `weights` and that the gate has not judged."""
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
    """Returns the registry's name of the version that `new_version` creates as the base's `number`th."""
    with TemporaryDirectory() as directory:
        write_adapter(Path(directory), weights)
        return f"{base}-bonbon-{number:04d}-{make_manifest(Path(directory)).digest[:8]}"


def write_adapter(directory: Path, weights: int) -> None:
    """Writes a valid safetensors file with one float, and its configuration."""
    header = json.dumps({"lora": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + struct.pack("<f", weights)
    (directory / "adapter_model.safetensors").write_bytes(data)
    (directory / "adapter_config.json").write_text(json.dumps({"r": 1}))
