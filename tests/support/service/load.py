"""Runs clients that send requests without pause and retry until they are answered, and checks the log afterwards."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import httpx2

SERVED = "SELECT request_id, id, text FROM groups JOIN candidates ON group_id = id WHERE served"
"""Selects the rows for `Load.compare`."""


@dataclass(frozen=True)
class Answered:
    """The content of an answer."""

    group_id: str | None
    text: str
    attempts: int


@dataclass
class Compared:
    """Answered requests whose groups are missing from the log, stored more than once, or different from the answer."""

    missing: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.missing or self.doubled or self.changed)


class Load:
    """Half of the requests stream; half draw four candidates, half one. The request id is the idempotency key."""

    def __init__(self, url: str, *, clients: int = 8, seed: int = 0) -> None:
        self.url, self.clients = url, clients
        self.answered: dict[str, Answered] = {}
        self.statuses: Counter[int] = Counter()
        self._rng = random.Random(seed)
        self._stop = asyncio.Event()

    @property
    def retried(self) -> int:
        """Number of answered requests that took more than one attempt."""
        return sum(answer.attempts > 1 for answer in self.answered.values())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends requests during the block, and waits at its end for all of them."""
        async with httpx2.AsyncClient(base_url=self.url, timeout=60.0) as client:
            asking = [
                asyncio.create_task(self._ask(client, random.Random(self._rng.random()))) for _ in range(self.clients)
            ]
            try:
                yield
            finally:
                self._stop.set()
                await asyncio.gather(*asking)

    def compare(self, rows: Iterable[tuple[str, str, str]]) -> Compared:
        """Compares the answers with `rows`, the result of `SERVED`."""
        logged: dict[str, list[tuple[str, str]]] = {}
        for request_id, group_id, text in rows:
            logged.setdefault(request_id, []).append((group_id, text))
        compared = Compared()
        for key, answer in self.answered.items():
            found = logged.get(key, [])
            if not found:
                compared.missing.append(key)
            elif len(found) > 1:
                compared.doubled.append(key)
            elif found[0] != (answer.group_id, answer.text):
                compared.changed.append(key)
        return compared

    async def _ask(self, client: httpx2.AsyncClient, rng: random.Random) -> None:
        while not self._stop.is_set():
            key, attempts = uuid4().hex, 0
            stream, model = rng.random() < 0.5, rng.choice(("bonbon", "base"))
            body = {"model": model, "stream": stream, "max_tokens": 12, "messages": [{"role": "user", "content": key}]}
            answer = None
            while answer is None:
                headers = {"idempotency-key": key, "x-request-id": key, "x-stainless-retry-count": str(attempts)}
                attempts += 1
                try:
                    response = await client.post("/v1/chat/completions", json=body, headers=headers)
                    self.statuses[response.status_code] += 1
                    answer = _read(response.text, attempts, stream=stream) if response.status_code == 200 else None
                except httpx2.TransportError:
                    pass  # the service was killed
                if answer is None:
                    await asyncio.sleep(0.02)
            self.answered[key] = answer


def _read(text: str, attempts: int, *, stream: bool) -> Answered | None:
    """Returns the answer, or None for a stream that broke off."""
    if not stream:
        whole = json.loads(text)
        return Answered(whole["bonbon"]["group_id"], whole["choices"][0]["message"]["content"], attempts)
    if not text.endswith("data: [DONE]\n\n"):
        return None
    events = [json.loads(block[6:]) for block in text.split("\n\n") if block.startswith("data: {")]
    written = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    return Answered(events[-1]["bonbon"]["group_id"], written, attempts)
