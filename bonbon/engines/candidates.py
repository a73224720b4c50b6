"""Collects an engine's interleaved deltas into whole candidates."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import cast

from bonbon.engines.engine import Delta, DrawRequest, Engine, FinishReason, Started, Token, TokenAlternative
from bonbon.errors import EngineError, PromptTooLong
from bonbon.prompt import Prompt
from bonbon.tools import ToolCall, ToolCallDelta, written


@dataclass(slots=True)
class Draw:
    """One candidate, accumulated from its deltas.

    `token_ids`, `tokens` and `logprobs` have one entry per sampled token.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    alternatives: list[tuple[TokenAlternative, ...]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def written(self) -> str:
        """Returns the text and the tool calls as one text, which rewards read."""
        return written(self.text, self.tool_calls)

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.tokens.extend(delta.tokens)
        self.alternatives.extend(delta.alternatives)
        self.finish_reason = delta.finish_reason or self.finish_reason
        for piece in delta.tool_calls:
            self._call(piece)

    def _call(self, piece: ToolCallDelta) -> None:
        while len(self.tool_calls) <= piece.index:
            self.tool_calls.append(ToolCall("", "", ""))
        call = self.tool_calls[piece.index]
        self.tool_calls[piece.index] = ToolCall(
            call.id or piece.id, call.name or piece.name, call.arguments + piece.arguments
        )


@dataclass(slots=True)
class Draws:
    """The n candidates of one request, and the prompt as the policy read it."""

    request: DrawRequest
    prompt: Started
    draws: list[Draw] = field(init=False)

    def __post_init__(self) -> None:
        self.draws = [Draw(index) for index in range(self.request.n)]

    def add(self, delta: Delta) -> None:
        self.draws[delta.index].add(delta)

    @property
    def readable(self) -> Prompt:
        """Returns the prompt for rewards, which read text: only the policy's tokenizer can read token ids."""
        prompt = self.request.prompt
        return prompt if prompt.token_ids is None else Prompt(text=self.prompt.text)

    @property
    def token_count(self) -> int:
        """Returns the number of tokens of all candidates."""
        return sum(len(draw.token_ids) for draw in self.draws)


async def collect(engine: Engine, request: DrawRequest) -> Draws:
    """Samples all candidates of `request` until they end."""
    draws, deltas = await start_drawing(engine, request)
    async with aclosing(deltas):
        async for delta in deltas:
            draws.add(delta)
    return draws


async def start_drawing(
    engine: Engine, request: DrawRequest, *, fit: bool = False
) -> tuple[Draws, AsyncGenerator[Delta]]:
    """Starts to sample. Returns the draws, which have only their prompt so far, and the deltas that follow.

    With `fit`, a request that exceeds the context is sampled with max_tokens reduced to the free space in it.

    Raises what `Engine.draw` raises before `Started`; with `fit`, PromptTooLong only when the prompt fills the context.
    """
    events = engine.draw(request)
    try:
        started = await _first(events)
    except PromptTooLong:
        if not fit:
            raise
        # Only the engine knows how many tokens a prompt has, and says so when it starts.
        free = engine.context_length - len((await read_prompt(engine, request)).token_ids)
        request = replace(request, sampling=request.sampling.shortened(free))
        events = engine.draw(request)
        started = await _first(events)
    return Draws(request, started), cast("AsyncGenerator[Delta]", events)


async def read_prompt(engine: Engine, request: DrawRequest) -> Started:
    """Returns the prompt as the policy reads it, by starting a draw of one token and aborting it."""
    one = replace(request, n=1, sampling=request.sampling.shortened(1))
    async with aclosing(engine.draw(one)) as events:
        return await _first(events)


async def _first(events: AsyncGenerator[Started | Delta]) -> Started:
    async for event in events:
        if isinstance(event, Started):
            return event
    raise EngineError("the engine ended the request before it started to sample; see the engine's log")
