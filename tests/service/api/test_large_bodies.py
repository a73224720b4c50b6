"""Bodies of very many parts, which would hold up every other request while they are checked, are refused at once."""

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bonbon.engines.engine import Delta, DrawRequest, PromptLogprobs, Started
from bonbon.engines.fake_engine import FakeEngine
from service.schemas.chat_body import ChatBody
from service.schemas.completion_body import CompletionBody
from service.schemas.message import MAX_TURNS
from service.schemas.prompts import parse_prompts
from service.schemas.request_body import Body
from service.schemas.responses_api.response_body import ResponseBody
from service.schemas.tokenize_body import DetokenizeBody, TokenizeBody
from tests.support.service.api import CHAT, COMPLETIONS, MESSAGES, error_of, open_api

MANY = 50_001
TURN = MESSAGES[0]
CALL = {"id": "1", "function": {"name": "f", "arguments": ""}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL] * 30}
NESTED: dict[str, Any] = {"a": [[]] * MANY}
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": NESTED}}
FUNCTION = {"name": "f", "parameters": NESTED}
UNKNOWN = {f"x{i}": 0 for i in range(MANY)}
RESPONSES, TOKENIZE, DETOKENIZE = "/v1/responses", "/tokenize", "/detokenize"

TOO_MUCH: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": [TURN] * (MAX_TURNS + 1)}, "messages"),
    (CHAT, {"messages": [TURN, *[CALLING] * 150]}, "messages"),
    (CHAT, {"messages": MESSAGES, "response_format": FORMAT}, "response_format.json_schema.schema"),
    (CHAT, {"messages": MESSAGES, "chat_template_kwargs": NESTED}, "chat_template_kwargs"),
    (
        CHAT,
        {"messages": MESSAGES, "tools": [{"type": "function", "function": FUNCTION}]},
        "tools[0].function.parameters",
    ),
    (RESPONSES, {"input": [TURN] * (MAX_TURNS + 1)}, "input"),
    (TOKENIZE, {"messages": [TURN] * (MAX_TURNS + 1)}, "messages"),
    (COMPLETIONS, {"prompt": ["a"] * MANY}, "prompt"),
    (COMPLETIONS, {"prompt": [[1]] * MANY}, "prompt"),
]

WRONG: list[tuple[type[Body], dict[str, Any]]] = [
    (ChatBody, {"messages": MESSAGES, **UNKNOWN}),
    (ChatBody, {"messages": [{}] * MAX_TURNS}),
    (ChatBody, {"messages": [TURN | dict(list(UNKNOWN.items())[:100])] * MAX_TURNS}),
    (ChatBody, {"messages": [CALLING | {"tool_calls": [{}] * (MAX_TURNS - 1)}]}),
    (ChatBody, {"messages": MESSAGES, "tools": [{}] * MANY}),
    (ChatBody, {"messages": MESSAGES, "metadata": {str(i): 1 for i in range(MANY)}}),
    (ChatBody, {"messages": MESSAGES, "logit_bias": {str(i): "x" for i in range(MANY)}}),
    (ChatBody, {"messages": MESSAGES, "stop": [1] * MANY}),
    (ResponseBody, {"input": [{}] * MAX_TURNS}),
    (ResponseBody, {"input": "a", "include": ["x"] * MANY}),
    (ResponseBody, {"input": "a", "tools": [{}] * MANY}),
    (CompletionBody, {"prompt": [-1] * MANY}),
    (TokenizeBody, {"messages": [{}] * MAX_TURNS}),
    (DetokenizeBody, {"tokens": [-1] * MANY}),
]


async def test_a_body_of_too_many_parts_is_refused_by_name(tmp_path: Path) -> None:
    async with open_api(tmp_path) as api:
        for path, body, param in TOO_MUCH:
            response = await api.post(path, model="base", **body)
            error = error_of(response)
            assert (response.status_code, error["param"]) == (400, param), error
        longest = await api.post(CHAT, model="base", max_tokens=1, messages=[TURN | {"content": ""}] * MAX_TURNS)
        assert longest.status_code == 200, longest.text


class CountingEngine(FakeEngine):
    """Counts the requests that reach it."""

    asked = 0

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        self.asked += 1
        async for event in super().draw(request):
            yield event

    async def prompt_logprobs(self, request: DrawRequest) -> PromptLogprobs:
        self.asked += 1
        return await super().prompt_logprobs(request)


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"echo": True, "max_tokens": 0}, {"max_tokens": 3}])
async def test_token_ids_beyond_the_context_never_reach_the_engine(tmp_path: Path, options: dict[str, Any]) -> None:
    """The engine would make text of each of them before it counts them: seconds for a body of the maximum size."""
    engine = CountingEngine()
    async with open_api(tmp_path, engine=engine, audit_fraction=0) as api:
        engine.asked = 0
        most = engine.context_length
        for prompt in ([1] * (most + 1), [[1], [1] * (most + 1)]):
            error = error_of(await api.post(COMPLETIONS, model="base", prompt=prompt, **options))
            assert error["message"] == (
                f"This model's maximum context length is {most} tokens. However, your prompt resulted in {most + 1} "
                "tokens. Please reduce the length of the prompt."
            )
            assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
        assert engine.asked == 0
        assert (await api.post(COMPLETIONS, model="base", prompt=[1] * (most - 8), **options)).status_code == 200
        assert engine.asked > 0


def test_each_token_id_is_checked_once() -> None:
    class Ids(list[int]):
        passes = 0

        def __iter__(self) -> Iterator[int]:
            Ids.passes += 1
            return super().__iter__()

    [prompt] = parse_prompts(Ids([1, 2, 3]))
    assert prompt.token_ids == (1, 2, 3)
    assert Ids.passes == 4  # its types, the lowest, the highest, and the copy


@pytest.mark.parametrize(("kind", "body"), WRONG)
def test_the_errors_of_a_body_are_not_collected_by_the_thousand(kind: type[Body], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "base", **body})
    assert caught.value.error_count() <= 150
