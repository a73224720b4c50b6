"""Runs the service over HTTP on the embedded engine, with a model that a test may give its own chat template."""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI

from bonbon.demo.tiny_models import tiny_models
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.pairs.group_rows import group_document
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import Settings
from service.app import create_app
from service.app_state import AppState
from tests.support.service.api import CHAT, COMPLETIONS
from tests.support.service.hosting import in_process, served_in_a_thread


@dataclass
class EmbeddedApi:
    """A running service with a client."""

    app: FastAPI
    reward: FakeReward
    client: httpx2.AsyncClient

    async def post(self, path: str, status: int = 200, **body: Any) -> Any:
        """Returns the answer's JSON and checks its status."""
        response = await self.client.post(path, json=body)
        assert response.status_code == status, response.text
        return response.json()

    async def chat(self, content: str = "Where is my order?", **body: Any) -> Any:
        return await self.post(CHAT, **{"model": "base", "messages": [{"role": "user", "content": content}], **body})

    async def complete(self, **body: Any) -> Any:
        return await self.post(COMPLETIONS, **{"model": "base", "prompt": "Where is my order?", **body})

    async def group(self, answer: Any) -> Any:
        """The logged group of an answer."""
        return await logged(self.app.state.bonbon, answer)


async def logged(state: AppState, answer: Any) -> Any:
    """An answer's group as the log has it."""
    group = await state.pair_log.group(answer["bonbon"]["group_id"])
    assert group is not None
    return group_document(group)


@asynccontextmanager
async def embedded_api(directory: Path, *, chat_template: str | None = None) -> AsyncIterator[EmbeddedApi]:
    """On the policy that ships with the package; `chat_template` replaces its own."""
    reward = FakeReward()
    app = embedded_app(directory, reward, chat_template=chat_template)
    async with in_process(app) as client:
        reward.calls.clear()  # those of the check at the start
        yield EmbeddedApi(app, reward, client)


@contextmanager
def serve_embedded(directory: Path, *, chat_template: str, **service: Any) -> Iterator[str]:
    """The URL of a real server on that policy; `service`: settings of its section."""
    with served_in_a_thread(embedded_app(directory, FakeReward(), chat_template=chat_template, **service)) as url:
        yield url


def embedded_app(directory: Path, reward: FakeReward, *, chat_template: str | None, **service: Any) -> FastAPI:
    model = directory / "model"
    shutil.copytree(tiny_models().policy, model)
    if chat_template is not None:
        (model / "chat_template.jinja").write_text(chat_template)
    engine = EmbeddedEngine("base", model, EmbeddedOptions(threads=1))
    settings = Settings(engine="fake", data_dir=directory, service=service)
    return create_app(settings, engine=engine, reward=reward)
