"""Bodies of very many parts, which would hold up every other request while they are checked, are refused at once."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.schemas.chat_body import ChatBody
from service.schemas.completion_body import CompletionBody
from service.schemas.message import MAX_TURNS
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


@pytest.mark.parametrize(("kind", "body"), WRONG)
def test_the_errors_of_a_body_are_not_collected_by_the_thousand(kind: type[Body], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "base", **body})
    assert caught.value.error_count() <= 150
