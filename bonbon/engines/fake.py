"""A deterministic engine that needs no model: for tests, and for trying the service out."""

import asyncio
import random
from collections.abc import AsyncGenerator

from bonbon.engines import response_format
from bonbon.engines.base import (
    Delta,
    DrawRequest,
    Engine,
    Sampling,
    Started,
    Token,
    TokenAlternative,
    VersionFiles,
    VersionKind,
    refuse_tools,
)
from bonbon.engines.fit import check_length
from bonbon.errors import EngineError, UnknownVersion
from bonbon.prompt import Prompt

WORDS = ("please", "check", "your", "order", "today", "we", "will", "help", "refund", "thanks", "sorry", "now")
END = len(WORDS)


class FakeEngine(Engine):
    """Draws words uniformly until a token says stop, one word a token.

    Args:
        base: name of the base version.
        delay: seconds between tokens.
        context_length: most tokens of prompt and completion.
        seed: for requests that bring none of their own.
        one_place: versions with full weights displace each other and the base, each load taking `delay` seconds.
    """

    def __init__(
        self,
        base: str = "fake",
        *,
        delay: float = 0.0,
        context_length: int = 2048,
        seed: int | None = 0,
        one_place: bool = False,
    ) -> None:
        self._base, self._delay, self._context_length, self._one_place = base, delay, context_length, one_place
        self._rng = random.Random(seed)
        self._versions: dict[str, VersionFiles | None] = {}
        self.running = 0
        self.failure: str | None = None

    @property
    def base(self) -> str:
        return self._base

    @property
    def context_length(self) -> int:
        return self._context_length

    async def start(self) -> None:
        self._versions[self._base] = None

    async def stop(self) -> None:
        self._versions.clear()

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        refuse_tools(request.prompt)
        started = _read(request.prompt)
        sampling = request.sampling
        response_format.refuse(sampling, "fake")
        if request.version not in self._versions:
            raise UnknownVersion(f"version {request.version!r} is not loaded", param="model")
        check_length(len(started.token_ids), request, self._context_length)
        self._raise_failure()
        self.running += request.n
        try:
            yield started
            generators = [self._generator(sampling, index) for index in range(request.n)]
            alive = set(range(request.n))
            texts = [""] * request.n
            for position in range(sampling.max_tokens):
                await asyncio.sleep(self._delay)
                self._raise_failure()
                for index in sorted(alive):
                    delta = _step(index, generators[index], texts[index], sampling, position)
                    texts[index] += delta.text
                    if delta.finish_reason:
                        alive.discard(index)
                    yield delta
                if not alive:
                    return
        finally:
            self.running -= request.n

    def displaces(self, version: VersionFiles) -> frozenset[str]:
        if not self._one_place or version.name in self._versions or version.kind is VersionKind.ADAPTER:
            return frozenset()
        return frozenset(self._versions)

    async def load(self, version: VersionFiles) -> None:
        if displaced := self.displaces(version):
            if self.running:
                raise EngineError(f"{self.running} candidates were being drawn from {', '.join(displaced)}")
            await asyncio.sleep(self._delay)
            self._versions.clear()
        self._versions[version.name] = version

    async def unload(self, name: str) -> None:
        self._versions.pop(name, None)

    async def loaded(self) -> frozenset[str]:
        return frozenset(self._versions)

    async def check(self) -> None:
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self.failure:
            raise EngineError(self.failure)

    def _generator(self, sampling: Sampling, index: int) -> random.Random:
        seed = self._rng.random() if sampling.seed is None else f"{sampling.seed}/{index}"
        return random.Random(seed)


def _read(prompt: Prompt) -> Started:
    if prompt.token_ids is not None:
        return Started(prompt.token_ids, " ".join(WORDS[token % len(WORDS)] for token in prompt.token_ids))
    turns = [m["content"] for m in prompt.messages] if prompt.messages is not None else [prompt.text or ""]
    text = "\n".join(turns)
    return Started(tuple(len(word) for word in text.split()), text)


def _step(index: int, rng: random.Random, so_far: str, sampling: Sampling, position: int) -> Delta:
    choice = 0 if sampling.temperature == 0 else rng.randrange(END + 1)
    if sampling.temperature == 0 and position >= 4:
        choice = END
    word = "" if choice == END else WORDS[choice] if not so_far else " " + WORDS[choice]
    finish: str | None = "stop" if choice == END else "length" if position + 1 == sampling.max_tokens else None
    text = word
    for stop in sampling.stop:
        at = (so_far + word).find(stop)
        if at >= 0:
            text, finish = (so_far + word)[len(so_far) : at], "stop"
    logprob = -2.5649493574615367  # log 1/13
    alternatives = tuple(
        TokenAlternative(token, Token.of(WORDS[token]), logprob) for token in range(min(sampling.top_logprobs, END))
    )
    return Delta(
        index,
        text,
        (choice,),
        (logprob,),
        (Token.of(word) if word else Token("<end>", None),),
        (alternatives,) if sampling.top_logprobs else (),
        finish,  # type: ignore[arg-type]
    )
