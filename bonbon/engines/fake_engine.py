"""A deterministic engine that needs no model, for tests and for trying out the service."""

import asyncio
import math
import random
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence

from bonbon.engines.engine import (
    Delta,
    DrawRequest,
    Engine,
    FinishReason,
    PromptLogprobs,
    Sampling,
    Started,
    Token,
    TokenAlternative,
    Tokens,
    VersionFiles,
    VersionKind,
    refuse_effort,
    refuse_tools,
)
from bonbon.engines.fake_distribution import weights
from bonbon.engines.request_limits import check_bias, check_length, check_request
from bonbon.engines.structured import response_format
from bonbon.errors import EngineError, UnknownVersion
from bonbon.prompt import Prompt

WORDS = ("please", "check", "your", "order", "today", "we", "will", "help", "refund", "thanks", "sorry", "now")
END = len(WORDS)
LOGPROB = -math.log(END + 1)


class FakeEngine(Engine):
    """Samples words until the end token, one word per token, all equally likely unless `Sampling` changes that.

    At temperature 0 it repeats its first word four times.

    Args:
        base: The name of the base version.
        delay: The seconds between tokens.
        context_length: The maximum number of tokens of prompt and completion.
        seed: The seed for requests without their own.
        one_place: Whether versions with full weights displace each other and the base; each load then takes `delay`
            seconds.
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
        self._check_version(request.version)
        check_request(request)
        check_bias(sampling, END + 1)
        check_length(len(started.token_ids), request, self._context_length)
        self._raise_failure()
        self.running += request.n
        try:
            yield started
            candidates = [
                _Candidate(index, self._generator(sampling, index), sampling, started.token_ids)
                for index in range(request.n)
            ]
            pieces: dict[int, list[Delta]] = defaultdict(list)
            while alive := [candidate for candidate in candidates if not candidate.finished]:
                await asyncio.sleep(self._delay)
                self._raise_failure()
                for candidate in alive:
                    delta = candidate.step()
                    if request.deltas:
                        yield delta
                        continue
                    pieces[delta.index].append(delta)
                    if candidate.finished:
                        yield _joined(pieces.pop(delta.index))
        finally:
            self.running -= request.n

    async def prompt_logprobs(self, request: DrawRequest) -> PromptLogprobs:
        refuse_tools(request.prompt)
        started = _read(request.prompt)
        self._check_version(request.version)
        check_length(len(started.token_ids), request, self._context_length, max_tokens=0)
        self._raise_failure()
        tokens = tuple(Token.of(word) for word in re.findall(r"\s*\S+", started.text))
        rest = len(tokens) - 1
        others = _likeliest(request.sampling.top_logprobs)
        if not tokens:
            return PromptLogprobs(started, (), (), ())
        return PromptLogprobs(started, tokens, (None, *[LOGPROB] * rest), ((), *[others] * rest))

    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool | None = None) -> Tokens:
        refuse_tools(prompt)
        started = _read(prompt)
        return Tokens(started.token_ids, tuple(started.text.split()))

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return _read(Prompt(token_ids=tuple(token_ids))).text

    def displaces(self, version: VersionFiles) -> frozenset[str]:
        if not self._one_place or version.name in self._versions or version.kind is VersionKind.ADAPTER:
            return frozenset()
        return frozenset(self._versions)

    async def load(self, version: VersionFiles) -> None:
        if displaced := self.displaces(version):
            if self.running:
                raise EngineError(
                    f"{self.running} candidates were still being sampled from {', '.join(displaced)} when "
                    f"{version.name} displaced them"
                )
            await asyncio.sleep(self._delay)
            self._versions.clear()
        self._versions[version.name] = version

    async def unload(self, name: str) -> None:
        self._versions.pop(name, None)

    async def loaded(self) -> frozenset[str]:
        return frozenset(self._versions)

    async def check(self) -> None:
        self._raise_failure()

    def _check_version(self, name: str) -> None:
        if name not in self._versions:
            raise UnknownVersion(f"version {name!r} is not loaded", param="model")

    def _raise_failure(self) -> None:
        if self.failure:
            raise EngineError(self.failure)

    def _generator(self, sampling: Sampling, index: int) -> random.Random:
        seed = self._rng.random() if sampling.seed is None else f"{sampling.seed}/{index}"
        return random.Random(seed)


def _read(prompt: Prompt) -> Started:
    refuse_effort(prompt)
    if prompt.token_ids is not None:
        return Started(prompt.token_ids, " ".join(WORDS[token % len(WORDS)] for token in prompt.token_ids))
    turns = [m["content"] for m in prompt.messages] if prompt.messages is not None else [prompt.text or ""]
    text = "\n".join(turns)
    return Started(tuple(len(word) for word in text.split()), text)


def _likeliest(wanted: int) -> tuple[TokenAlternative, ...]:
    return tuple(TokenAlternative(other, Token.of(WORDS[other]), LOGPROB) for other in range(min(wanted, END)))


def _joined(deltas: Sequence[Delta]) -> Delta:
    """Returns the deltas of one candidate as a single delta."""
    return Delta(
        deltas[0].index,
        "".join(delta.text for delta in deltas),
        tuple(token_id for delta in deltas for token_id in delta.token_ids),
        tuple(logprob for delta in deltas for logprob in delta.logprobs),
        tuple(token for delta in deltas for token in delta.tokens),
        tuple(position for delta in deltas for position in delta.alternatives),
        deltas[-1].finish_reason,
    )


class _Candidate:
    """One candidate while it is sampled."""

    def __init__(self, index: int, rng: random.Random, sampling: Sampling, prompt: tuple[int, ...]) -> None:
        self._index, self._rng, self._sampling, self._prompt = index, rng, sampling, frozenset(prompt)
        self._text, self._released = "", 0
        self._sampled: list[int] = []
        self.finished = False

    def step(self) -> Delta:
        """Samples the next token."""
        sampling = self._sampling
        token = self._choose()
        ends = token == END and not sampling.ignore_eos
        self._sampled.append(token)
        word = "" if token == END else WORDS[token] if not self._text else " " + WORDS[token]
        finish: FinishReason | None = (
            "stop" if ends else "length" if len(self._sampled) == sampling.max_tokens else None
        )
        before, self._text = len(self._text), self._text + word
        if len(self._sampled) > sampling.min_tokens:
            for stop in sampling.stop:
                at = self._text.find(stop, max(0, before - len(stop) + 1))
                if at >= 0:
                    self._text, finish = self._text[:at], "stop"
        self.finished = finish is not None
        end = len(self._text) - (0 if self.finished else self._held())
        text, self._released = self._text[self._released : end], end
        others = _likeliest(sampling.top_logprobs)
        return Delta(
            self._index,
            text,
            (token,),
            (LOGPROB,),
            (Token.of(word) if word else Token("<end>", None),),
            (others,) if sampling.top_logprobs else (),
            finish,
        )

    def _held(self) -> int:
        """Returns the length of the longest end of the text with which a stop string may begin."""
        return max(
            (size for stop in self._sampling.stop for size in range(1, len(stop)) if self._text.endswith(stop[:size])),
            default=0,
        )

    def _choose(self) -> int:
        logits = [LOGPROB] * (END + 1)
        if self._sampling.temperature == 0:
            logits[END if len(self._sampled) >= 4 else 0] += 1
        elif self._sampling.unmodified:
            return self._rng.randrange(END + 1)
        distribution = weights(logits, END, self._sampling, self._prompt, self._sampled)
        return self._rng.choices(range(END + 1), distribution)[0]
