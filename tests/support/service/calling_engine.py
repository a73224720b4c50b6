"""The fake engine, extended by tool calls and response formats."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from bonbon.engines.engine import Delta, DrawRequest, FinishReason, Started, Token
from bonbon.engines.fake_engine import END, LOGPROB, FakeEngine
from bonbon.prompt import Prompt
from bonbon.tools import ToolCallDelta

ARGUMENTS = ('{"id"', ": 7}")
CALLED = "get_order"
REPLY = '{"city": "Paris", "degrees": 21}'


class CallingEngine(FakeEngine):
    """Every candidate calls a function `calls` times when it is offered tools and no tool has answered yet.

    A candidate that must have a shape is `REPLY`. Otherwise it is what the fake engine draws. `requests` has all that
    was asked of it.
    """

    def __init__(self, *, calls: int = 1, text: str = "", delay: float = 0.0) -> None:
        super().__init__(delay=delay)
        self.calls, self.text = calls, text
        self.requests: list[DrawRequest] = []

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        self.requests.append(request)
        prompt, sampling = request.prompt, request.sampling
        turns = prompt.messages or ()
        text = Prompt.user("\n".join(turn["content"] for turn in turns)) if turns else prompt
        plain = replace(request, prompt=text, sampling=replace(sampling, response_format=None))
        calls = prompt.tools is not None and turns[-1]["role"] != "tool"
        async with aclosing(super().draw(plain)) as events:
            async for event in events:
                yield event
                if isinstance(event, Started) and (calls or sampling.response_format):
                    break
            else:
                return
        for index in range(request.n):
            if calls:
                yield _delta(index, self.text)
                for call in range(self.calls):
                    yield _delta(index, "", ToolCallDelta(call, f"call-{index}-{call}", CALLED))
                    for piece in ARGUMENTS:
                        yield _delta(index, "", ToolCallDelta(call, arguments=piece))
            else:
                for part in (REPLY[:7], REPLY[7:]):
                    yield _delta(index, part)
            yield _delta(index, "", finish="stop")


def _delta(index: int, text: str, *calls: ToolCallDelta, finish: FinishReason | None = None) -> Delta:
    token = Token.of(text) if text else Token("<tool>", None)
    return Delta(index, text, (END,), (LOGPROB,), (token,), (), finish, calls)
