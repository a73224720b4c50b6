"""Collects an engine's interleaved deltas into whole candidates."""

from contextlib import aclosing
from dataclasses import dataclass, field

from bonbon.engines.engine import Delta, DrawRequest, Engine, FinishReason, Started, Token, TokenAlternative
from bonbon.errors import EngineError
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

    n: int
    started: Started | None = None
    draws: list[Draw] = field(init=False)

    def __post_init__(self) -> None:
        self.draws = [Draw(index) for index in range(self.n)]

    def add(self, event: Started | Delta) -> None:
        if isinstance(event, Started):
            self.started = event
        else:
            self.draws[event.index].add(event)

    @property
    def prompt(self) -> Started:
        """Returns the prompt as the policy read it. Raises EngineError when the engine never yielded `Started`."""
        if self.started is None:
            raise EngineError("the engine ended the request before it started to sample; see the engine's log")
        return self.started


async def collect(engine: Engine, request: DrawRequest) -> Draws:
    """Samples all candidates of `request` until they end."""
    draws = Draws(request.n)
    async with aclosing(engine.draw(request)) as events:
        async for event in events:
            draws.add(event)
    return draws
