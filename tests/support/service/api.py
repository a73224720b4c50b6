"""Runs the service on the fakes and a real database, in this process or behind a real server on a free port."""

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from openai import OpenAI

from bonbon.engines.fake_engine import FakeEngine
from bonbon.prompt import Prompt
from bonbon.rewards.fake_reward import FakeReward, digest_score
from bonbon.settings import Settings
from service.app import create_app
from service.app_state import AppState
from tests.support.service.hosting import in_process, served_in_a_thread

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "Where is my order?"}]


@dataclass
class Api:
    """A running service with a client."""

    app: FastAPI
    engine: FakeEngine
    reward: FakeReward
    client: httpx2.AsyncClient

    @property
    def state(self) -> AppState:
        state: AppState = self.app.state.bonbon
        return state

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        return await self.client.post(path, json=body)

    async def chat(self, **body: Any) -> dict[str, Any]:
        return _ok(await self.post(CHAT, **{"model": "bonbon", "messages": MESSAGES, "seed": 1, **body}))

    async def complete(self, **body: Any) -> dict[str, Any]:
        return _ok(await self.post(COMPLETIONS, **{"model": "bonbon", "prompt": "Dear customer", "seed": 1, **body}))

    async def refusal(self, path: str = CHAT, status: int = 400, **body: Any) -> dict[str, Any]:
        """Returns the error with which an otherwise valid chat request is refused."""
        order = {"messages": MESSAGES} if path == CHAT else {"prompt": "Dear customer"}
        response = await self.post(path, **{"model": "bonbon", **order, **body})
        assert response.status_code == status, response.text
        return error_of(response)

    async def groups(self) -> int:
        """Returns the number of groups in the log."""
        return count_groups(self.state.settings.data_dir)


@asynccontextmanager
async def open_api(directory: Path, *, engine: FakeEngine | None = None, **service: Any) -> AsyncIterator[Api]:
    """Opens a service; `service` are settings of its section."""
    app, engine, reward = make_app(directory, engine, **service)
    async with in_process(app) as client:
        reward.calls.clear()  # calls of the check at the start
        yield Api(app, engine, reward, client)


@dataclass
class Server:
    """A service behind a real server, in a separate thread."""

    url: str
    app: FastAPI
    engine: FakeEngine
    reward: FakeReward
    directory: Path


@contextmanager
def serve(directory: Path, *, engine: FakeEngine | None = None, **service: Any) -> Iterator[Server]:
    """Serves in a thread; `service` are settings of the section `service`."""
    app, engine, reward = make_app(directory, engine, **service)
    with served_in_a_thread(app) as url:
        reward.calls.clear()  # calls of the check at the start
        yield Server(url, app, engine, reward, directory)


def longest(prompt: Prompt, completion: str) -> float:
    """A reward that prefers long texts, so that an empty candidate of the fake engine is not the answer."""
    return len(completion) + digest_score(prompt, completion)


@contextmanager
def openai_client(server: Server) -> Iterator[OpenAI]:
    """Yields an OpenAI client, which validates answers, for a server whose key is `secret`."""
    with OpenAI(
        base_url=f"{server.url}/v1", api_key="secret", max_retries=0, _strict_response_validation=True
    ) as opened:
        yield opened


def make_app(directory: Path, engine: FakeEngine | None, **service: Any) -> tuple[FastAPI, FakeEngine, FakeReward]:
    engine, reward = engine or FakeEngine(), FakeReward()
    settings = Settings(engine="fake", data_dir=directory, service=service)
    return create_app(settings, engine=engine, reward=reward), engine, reward


def count_groups(directory: Path, group_id: str = "%") -> int:
    """Returns the number of committed groups, read by another connection."""
    with closing(sqlite3.connect(directory / "bonbon.db")) as connection:
        count: int = connection.execute("SELECT count(*) FROM groups WHERE id LIKE ?", (group_id,)).fetchone()[0]
    return count


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """Returns the error object after checking that it has all four keys."""
    body: dict[str, Any] = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    return error


def events(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the JSON events of a stream that ended with [DONE], and its comments."""
    blocks = text.removesuffix("\n\n").split("\n\n")
    comments = [block for block in blocks if block.startswith(":")]
    data = [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
    assert len(comments) + len(data) == len(blocks)
    assert data[-1] == "[DONE]"
    return [json.loads(event) for event in data[:-1]], comments


def _ok(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body
