"""No request, however it ends, leaves objects for the garbage collector."""

import asyncio
import gc
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bonbon.engines.fake_engine import FakeEngine
from bonbon.prompt import Prompt
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import Settings
from service.app import create_app
from service.app_state import AppState
from tests.service.http_server.test_server import served
from tests.support.service.fake_service import BODY, CHAT
from tests.support.service.raw_http import answer_of, request
from tests.support.until import until

OURS = ("bonbon", "service")
COMPLETIONS = "/v1/completions"
LONG: dict[str, Any] = BODY | {"max_tokens": 1000}


@contextmanager
def garbage() -> Iterator[list[str]]:
    """Collects our objects that the block left in reference cycles; the list is filled at the end of the block."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    yield found
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found += [name for thing in gc.garbage if (name := _ours(thing))]
    gc.garbage.clear()
    gc.enable()


def _ours(thing: object) -> str | None:
    code = getattr(thing, "f_code", None) or getattr(thing, "cr_code", None) or getattr(thing, "ag_code", None)
    if isinstance(code, types.CodeType):
        parts = Path(code.co_filename).parts
        return f"{code.co_filename}: {code.co_qualname}" if parts[-2] in OURS or parts[-3] in OURS else None
    module = type(thing).__module__ or ""
    return f"{module}.{type(thing).__qualname__}" if module.split(".")[0] in OURS else None


class Client:
    """Sends requests to a service that must not keep any object afterwards."""

    def __init__(self, port: int, state: AppState, engine: FakeEngine) -> None:
        self.port, self.state, self.engine = port, state, engine

    async def ask(self, body: dict[str, Any], path: str = CHAT) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request(path, body, "connection: close"))
        answer = await answer_of(reader)
        writer.close()
        return answer

    async def hang_up(self, body: dict[str, Any], *, waiting: int = 0) -> None:
        """When it is drawn, or waits behind another request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request(CHAT, body))
        await until(lambda: self.engine.running > 0 and self.state.admission.waiting == waiting)
        writer.transport.abort()
        await until(lambda: self.state.admission.waiting == 0)
        del reader

    async def hang_up_in_the_body(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request(CHAT, BODY)[:-10])
        await asyncio.sleep(0.05)
        writer.transport.abort()
        del reader

    async def idle(self) -> None:
        """When it holds nothing, and has had some turns of the loop to forget."""
        await until(lambda: not (self.state.admission.in_flight or self.state.router.in_flight))
        await until(lambda: self.state.connections.open == 0)
        for _ in range(20):
            await asyncio.sleep(0)


async def test_no_request_leaves_garbage_however_it_ends(tmp_path: Path) -> None:
    engine, reward = FakeEngine(delay=0.001), FakeReward()
    limits = {"max_tokens_in_flight": 8 * 1000, "max_wait": 0.2, "max_waiting": 1}
    settings = Settings(engine="fake", data_dir=tmp_path, service=limits)
    app = create_app(settings, engine=engine, reward=reward)
    left: dict[str, list[str]] = {}
    async with served(app) as server:
        client = Client(int((await server.url).rpartition(":")[2]), app.state.bonbon, engine)
        await _every_way(client, reward)  # what is made once is no garbage
        for name in WAYS:
            with garbage() as found:
                await getattr(Ways(client, reward), name)()
                await client.idle()
            left[name] = found
        await server.end()
    assert {name: found for name, found in left.items() if found} == {}


class Ways:
    """The ways in which a request can end."""

    def __init__(self, client: Client, reward: FakeReward) -> None:
        self.client, self.reward = client, reward

    async def answered(self) -> None:
        for stream in (False, True):
            for model in ("bonbon", "base"):
                assert b" 200 OK" in await self.client.ask(BODY | {"stream": stream, "model": model})

    async def hung_up(self) -> None:
        self.client.engine._delay = 0.3
        for stream in (False, True):
            for model in ("bonbon", "base"):
                await self.client.hang_up(LONG | {"stream": stream, "model": model})
                await self.client.idle()
        self.client.engine._delay = 0.001

    async def hung_up_while_it_waited(self) -> None:
        self.client.engine._delay = 0.05
        first = asyncio.create_task(self.client.ask(LONG))
        await until(lambda: self.client.engine.running > 0)
        for stream in (False, True):
            await self.client.hang_up(LONG | {"stream": stream}, waiting=1)
        assert b" 200 OK" in await first
        self.client.engine._delay = 0.001

    async def waited_too_long_or_found_the_queue_full(self) -> None:
        self.client.engine._delay = 0.1
        answers = await asyncio.gather(*(self.client.ask(LONG) for _ in range(4)))
        assert sum(b" 503 " in answer for answer in answers) == 3
        self.client.engine._delay = 0.001

    async def refused(self) -> None:
        for fields in ({"model": "nobody"}, {"max_tokens": 5000}, {"n": "x"}, {"best_of": 99}):
            for stream in (False, True):
                assert b" 40" in (await self.client.ask(BODY | {"stream": stream} | fields))[:20]
        prompts = {"model": "base", "prompt": ["a", "long " * 3000], "max_tokens": 100, "stream": True}
        assert b" 400 " in await self.client.ask(prompts, COMPLETIONS)

    async def hung_up_in_the_body(self) -> None:
        await self.client.hang_up_in_the_body()

    async def failed(self) -> None:
        self.client.engine.failure = "the accelerator is gone"
        for stream in (False, True):
            assert b" 503 " in await self.client.ask(BODY | {"stream": stream})
        self.client.engine.failure = None

    async def failed_in_the_middle(self) -> None:
        self.client.engine._delay = 0.1
        for model in ("bonbon", "base"):
            asking = asyncio.create_task(self.client.ask(LONG | {"stream": True, "model": model}))
            await until(lambda: self.client.engine.running > 0)
            await asyncio.sleep(0.15)
            self.client.engine.failure = "the accelerator is gone"
            assert b"the accelerator is gone" in await asking
            self.client.engine.failure = None
        self.client.engine._delay = 0.001

    async def degraded(self) -> None:
        def fail(prompt: Prompt, completion: str) -> float:
            raise ValueError("the reward is gone")

        function, self.reward.function = self.reward.function, fail
        for stream in (False, True):
            assert b"degraded" in await self.client.ask(BODY | {"stream": stream})
        self.reward.function = function


WAYS = [name for name in vars(Ways) if not name.startswith("_")]


async def _every_way(client: Client, reward: FakeReward) -> None:
    for name in WAYS:
        await getattr(Ways(client, reward), name)()
        await client.idle()
