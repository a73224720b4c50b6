"""A client that disconnects from a service in front of vLLM, and measures how long vLLM keeps drawing."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpx2
from prometheus_client import Metric

from bonbon.settings import ServiceSettings

UNLIMITED = ServiceSettings(max_best_of=128, max_prompts=256, max_tokens_in_flight=2**30)
"""Settings of a service that takes as much at once."""
NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 400, "maxItems": 400}
"""No draw that is held to it ends early."""
HANG_UPS: dict[str, tuple[int, dict[str, Any]]] = {
    "whole answers": (32, {"model": "bonbon", "best_of": 128}),
    "streams that open when the best is known": (32, {"model": "bonbon", "best_of": 128, "stream": True}),
    "tokens as they are drawn": (
        4,
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
"""How many chats keep vLLM busy, and what they ask: 4,096 draws of the tiny model take two idle cores half a minute. Of
streams of tokens a few: more would keep everyone on the way from seeing that the client has gone until all is drawn."""
TRIES = 5
WHILE = 60.0
"""Seconds that ending all draws may take on a busy machine: fewer than half may come to their end by themselves."""


async def hang_up(url: str, kind: str, metrics: Callable[[], Awaitable[Iterable[Metric]]]) -> None:
    """Ask for one of HANG_UPS, hang up while it is drawn, and see that vLLM ends the draws. Prints how long that took.

    Asked again when a busy machine was through with the draws before the client could see that they had begun.

    Args:
        metrics: vLLM's own, as they are now.
    """
    for _ in range(TRIES):
        if await _share_drawn(url, kind, metrics) < 0.5:
            return
    raise AssertionError(f"{kind}: {TRIES} times at least half of the draws came to their end")


async def _share_drawn(url: str, kind: str, metrics: Callable[[], Awaitable[Iterable[Metric]]]) -> float:
    chats, asked = HANG_UPS[kind]
    draws = chats * asked.get("best_of", 1)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1000, "temperature": 2} | asked
    drawn_before = ended(await metrics())
    token = asyncio.Event()

    async def ask() -> None:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if '"delta":{"content":' in line:
                    token.set()

    async def drawing() -> None:
        if body["model"] == "base":  # vLLM is too busy with its streams to say in time how many it draws
            await token.wait()
        else:
            while under_way(await metrics()) < draws / 2:
                await asyncio.sleep(0.02)

    async with httpx2.AsyncClient(timeout=None) as client:
        asking = [asyncio.create_task(ask()) for _ in range(chats)]
        waiting = asyncio.create_task(drawing())
        await asyncio.wait([waiting, *asking], return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, *asking):
            task.cancel()
        for problem in await asyncio.gather(waiting, *asking, return_exceptions=True):
            assert problem is None or isinstance(problem, asyncio.CancelledError), problem
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.timeout(WHILE):
            while under_way(await metrics()):
                await asyncio.sleep(0.02)
    drawn = ended(await metrics()) - drawn_before
    print(f"{kind}: {drawn:.0f} of {draws} draws came to their end, the rest {loop.time() - start:.2f} s after")
    return float(drawn / draws)


def under_way(metrics: Iterable[Metric]) -> float:
    """Returns the number of running and waiting draws."""
    return sum(
        sample.value
        for family in metrics
        for sample in family.samples
        if sample.name in ("vllm:num_requests_running", "vllm:num_requests_waiting")
    )


def ended(metrics: Iterable[Metric]) -> float:
    """Returns the number of draws that ended by themselves."""
    return sum(
        sample.value
        for family in metrics
        for sample in family.samples
        if sample.name == "vllm:request_success_total" and sample.labels["finished_reason"] in ("stop", "length")
    )
