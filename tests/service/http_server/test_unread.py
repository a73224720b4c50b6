"""Clients that request large answers and read nothing, on their own sockets against the running service."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bonbon.engines.engine import VersionKind
from bonbon.registry.registry import Registry
from bonbon.store.database import open_database
from tests.support.service.fake_service import BODY, CHAT
from tests.support.service.forked_service import ForkedService
from tests.support.service.raw_http import request, unread_socket
from tests.support.service.running_service import new_version
from tests.support.service.service_metrics import metric
from tests.support.until import until

PROMPTS, N, MAX_TOKENS = 64, 32, 512
LARGE: dict[str, Any] = {
    "model": "base", "prompt": ["Where is my order?"] * PROMPTS, "n": N, "max_tokens": MAX_TOKENS, "logprobs": 5,
    "store": False,
}  # fmt: skip
"""A request that uses the whole token capacity; its answer, 6 MB, is larger than the socket buffers."""
LIMITS = {"max_tokens_in_flight": PROMPTS * N * MAX_TOKENS, "max_wait": 30}


@asynccontextmanager
async def started(directory: Path, delay: float = 0.0, **settings: Any) -> AsyncIterator[ForkedService]:
    engine = {"delay": delay, "one_place": True}
    service = ForkedService(directory, engine_options=engine, service=LIMITS | settings)
    await service.start()
    try:
        yield service
    finally:
        assert await service.stop() == 0


async def until_metric(service: ForkedService, sample: str, value: float) -> None:
    async with asyncio.timeout(60):
        while await metric(service, sample) != value:
            await asyncio.sleep(0.05)


async def read_all(opened: socket.socket) -> bytes:
    """Reads until the service closes the connection, and closes the socket."""
    opened.setblocking(False)
    loop, answer = asyncio.get_running_loop(), bytearray()
    with opened:
        async with asyncio.timeout(60):
            while piece := await loop.sock_recv(opened, 2**20):
                answer += piece
    return bytes(answer)


async def ask_unread(service: ForkedService, **fields: Any) -> socket.socket:
    """Opens a connection, requests the large answer and reads nothing; returns when the answer is generated."""
    asked = unread_socket(service.port)
    asked.sendall(request("/v1/completions", LARGE | fields, "connection: close"))
    async with asyncio.timeout(60):
        while not await metric(service, 'bonbon_answers_total{asked="base",model_version="fake"}') >= PROMPTS:
            await asyncio.sleep(0.05)
    return asked


async def test_a_stream_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    """An unread answer delays neither other requests nor the replacement of full weights, and it stays complete."""
    async with started(tmp_path) as service:
        asked = await ask_unread(service, stream=True)
        await until_metric(service, "bonbon_tokens_in_flight", 0)
        assert await metric(service, "bonbon_answers_in_flight") == 0
        assert await metric(service, "bonbon_stream_buffer_bytes") > 0, "it was read"
        async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
            assert (await client.post(CHAT, json=BODY)).status_code == 200
            name = await full_weights(service)
            promoted = await client.post("/admin/promote", json={"version": name})
            assert (promoted.status_code, promoted.json()["served"]) == (200, True), promoted.text
            assert (await client.post(CHAT, json=BODY)).json()["bonbon"]["version"] == name
        answer = await read_all(asked)
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert answer.count(b'"finish_reason":"stop"') == PROMPTS * N


async def full_weights(service: ForkedService) -> str:
    """Registers a version with its own weights that can be promoted."""
    data = service.directory / "data"
    async with open_database(f"sqlite+aiosqlite:///{data / 'bonbon.db'}") as database:
        registry = Registry(database, data / "versions")
        version = await new_version(registry, 1, kind=VersionKind.FULL)
        await registry.approve(version.name, {"passed": True, "reasons": []})
    return version.name


@pytest.mark.parametrize("stream", [True, False], ids=["a stream", "a whole answer"])
async def test_who_reads_nothing_is_cut_off(tmp_path: Path, stream: bool) -> None:
    async with started(tmp_path, send_timeout=1) as service:
        asked = await ask_unread(service, stream=stream)
        await until_metric(service, 'bonbon_connections_closed_total{reason="send_timeout"}', 1)
        await until_metric(service, "bonbon_connections", 1)
        assert await metric(service, "bonbon_stream_buffer_bytes") == 0
        asked.close()


async def test_who_reads_slowly_is_served(tmp_path: Path) -> None:
    """The client takes much longer than the limit in total, but reads something within each period."""
    async with started(tmp_path, send_timeout=2) as service:
        asked = await ask_unread(service, stream=False)
        asked.setblocking(False)
        for _ in range(12):
            await asyncio.sleep(0.5)
            await asyncio.get_running_loop().sock_recv(asked, 8192)
        assert await metric(service, 'bonbon_connections_closed_total{reason="send_timeout"}') == 0
        assert (await read_all(asked)).endswith(b"}")


async def test_what_waits_for_clients_is_bounded_and_the_largest_has_to_go(tmp_path: Path) -> None:
    async with started(tmp_path, 0.01, stream_buffer_bytes=2**20) as service:
        small, large = unread_socket(service.port), unread_socket(service.port)
        for asked, body in (
            (small, {"model": "base", "prompt": "Hi", "stream": True}),
            (large, LARGE | {"stream": True}),
        ):
            asked.sendall(request("/v1/completions", body, "connection: close"))
        # The log keeps it; what is in flight may rise and fall again between two looks.
        await until(lambda: "stream cut off" in (tmp_path / "service.log").read_text())
        await until_metric(service, "bonbon_tokens_in_flight", 0)
        assert await metric(service, "bonbon_stream_buffer_bytes") <= 2**20
        async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
            assert (await client.post(CHAT, json=BODY | {"stream": True})).text.endswith("data: [DONE]\n\n")
        answer, other = await read_all(large), await read_all(small)
    assert b"[DONE]" not in answer
    assert b'"code":"client_too_slow"' in answer
    assert b"data: [DONE]" in other
