"""Sends requests with the official openai client."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

MAX_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Reply:
    """One chosen answer and its cost: `draws` candidates with `drawn_tokens` tokens."""

    request: str
    texts: tuple[str, ...]
    version: str
    rewards: tuple[float | None, ...]
    draws: int
    returned_tokens: int
    drawn_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds to the first and to the last token of one streamed answer."""

    ttft: float
    latency: float


@dataclass(slots=True)
class SwapTraffic:
    """The results of requests that were sent while versions were swapped."""

    requests: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)


class Traffic:
    """Sends chat requests, at most `concurrency` at a time.

    Args:
        client: An AsyncOpenAI client of the service.
    """

    def __init__(self, client: "AsyncOpenAI", concurrency: int = 48) -> None:
        self.client, self.concurrency = client, concurrency

    async def ask(self, request: str, *, model: str, seed: int, **options: Any) -> Reply:
        completion = await self.client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": request}],
            max_tokens=MAX_TOKENS,
            seed=seed,
            **options,
        )
        return _reply(request, completion)

    async def ask_all(
        self,
        requests: Iterable[str],
        *,
        model: str,
        seed: int,
        done: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> list[Reply]:
        """Returns one reply per request, in order; request i is seeded with `seed + i`."""
        slots = asyncio.Semaphore(self.concurrency)

        async def one(index: int, request: str) -> Reply:
            async with slots:
                reply = await self.ask(request, model=model, seed=seed + index, **options)
            done()
            return reply

        return list(await asyncio.gather(*(one(i, request) for i, request in enumerate(requests))))

    async def stream(self, request: str, *, model: str, seed: int, **options: Any) -> Timing:
        """Streams one answer and times it."""
        start = perf_counter()
        ttft: float | None = None
        stream = await self.client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": request}],
            max_tokens=MAX_TOKENS,
            seed=seed,
            stream=True,
            **options,
        )
        async for chunk in stream:
            if ttft is None and chunk.choices and chunk.choices[0].delta.content:
                ttft = perf_counter() - start
        latency = perf_counter() - start
        return Timing(latency if ttft is None else ttft, latency)

    async def until(
        self,
        stop: asyncio.Event,
        requests: list[str],
        *,
        model: str,
        workers: int = 4,
        result: SwapTraffic | None = None,
    ) -> SwapTraffic:
        """Sends requests from `workers` clients until `stop` is set, without retries, and counts failures.

        Args:
            result: The counts, which the caller may read while requests are sent; by default a new object.
        """
        from openai import OpenAIError

        result = SwapTraffic() if result is None else result
        client = self.client.with_options(max_retries=0)

        async def work(worker: int) -> None:
            turn = 0
            while not stop.is_set():
                request = requests[(worker + turn * workers) % len(requests)]
                turn += 1
                result.requests += 1
                try:
                    reply = await Traffic(client).ask(request, model=model, seed=turn * workers + worker)
                except OpenAIError as error:
                    result.failed += 1
                    result.errors.append(f"{type(error).__name__}: {error}")
                else:
                    result.versions[reply.version] = result.versions.get(reply.version, 0) + 1

        await asyncio.gather(*(work(worker) for worker in range(workers)))
        return result


def _reply(request: str, completion: "ChatCompletion") -> Reply:
    extension = (completion.model_extra or {})["bonbon"]
    assert completion.usage is not None
    return Reply(
        request,
        tuple(choice.message.content or "" for choice in completion.choices),
        extension["version"],
        tuple(extension["rewards"]),
        extension["n"],
        completion.usage.completion_tokens,
        extension["tokens_drawn"],
    )
