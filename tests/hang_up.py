"""A client that hangs up on a service in front of vLLM, and how long what it asked for is drawn all the same."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from prometheus_client import Metric

from bonbon.settings import ServiceSettings

UNLIMITED = ServiceSettings(max_best_of=128, max_prompts=256, max_tokens_in_flight=2**30)
"""Settings of a service that takes as much at once."""
NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 400, "maxItems": 400}
"""No draw that is held to it ends early."""
HANG_UPS: dict[str, tuple[int, dict[str, Any]]] = {
    "whole answers": (32, {"model": "bonbon", "best_of": 128}),
    "streams that open when the best is known": (32, {"model": "bonbon", "best_of": 128, "stream": True}),
    # Few enough that passing their tokens on leaves this event loop, which also looks at vLLM, time to see them drawn.
    "tokens as they are drawn": (
        8,
        {
            "model": "base",
            "stream": True,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "numbers", "strict": True, "schema": NUMBERS},
            },
        },
    ),
}
"""How many chats keep vLLM busy, and what they ask: 4,096 draws of the tiny model take two idle cores half a minute."""
WHILE = 10.0
"""Seconds that ending all draws may take on a busy machine."""


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """The URL of `app` behind a real server on this event loop, which is the one that an engine of ours serves."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "the server did not start"
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


async def hang_up(url: str, kind: str, metrics: Callable[[], Awaitable[Iterable[Metric]]]) -> None:
    """Ask for one of HANG_UPS, hang up while it is drawn, and see that vLLM ends the draws. Prints how long that took.

    Args:
        metrics: vLLM's own, as they are now.
    """
    chats, asked = HANG_UPS[kind]
    draws = chats * asked.get("best_of", 1)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1000, "temperature": 2} | asked
    drawn_before = ended(await metrics())
    async with httpx2.AsyncClient(timeout=None, limits=httpx2.Limits()) as client:
        asking = [asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body)) for _ in range(chats)]
        while (before := under_way(await metrics())) < draws / 2:
            for done in (one for one in asking if one.done()):
                raise AssertionError(done.result().text[:1000])
            await asyncio.sleep(0.02)
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.timeout(WHILE):
            while under_way(await metrics()):
                await asyncio.sleep(0.02)
    print(f"{kind}: vLLM ended {before:.0f} draws {loop.time() - start:.2f} s after their client")
    assert ended(await metrics()) - drawn_before < draws / 2


def under_way(metrics: Iterable[Metric]) -> float:
    """Draws that run or wait."""
    return sum(
        sample.value
        for family in metrics
        for sample in family.samples
        if sample.name in ("vllm:num_requests_running", "vllm:num_requests_waiting")
    )


def ended(metrics: Iterable[Metric]) -> float:
    """Draws that came to their end by themselves."""
    return sum(
        sample.value
        for family in metrics
        for sample in family.samples
        if sample.name == "vllm:request_success_total" and sample.labels["finished_reason"] in ("stop", "length")
    )
