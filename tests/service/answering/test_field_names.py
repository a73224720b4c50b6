"""Errors of `/v1/responses` name the fields of `/v1/responses`."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from bonbon.engines.engine import Delta, DrawRequest, Started
from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import UserError
from service.answering.field_names import naming_fields
from service.schemas.chat_body import ChatBody
from service.schemas.responses_api.response_body import ResponseBody
from tests.support.service.api import CHAT, MESSAGES, Api, error_of, open_api

RESPONSES = "/v1/responses"
BODY = ResponseBody.model_validate({"model": "base", "input": "Where is my order?"})
PLACES = [
    ("messages", "input"),
    ("messages[3].content", "input[3].content"),
    ("max_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("response_format", "text.format"),
    ("response_format.type", "text.format.type"),
    ("response_format.json_schema", "text.format"),
    ("response_format.json_schema.schema", "text.format.schema"),
    ("tools", "tools"),
    ("tools[0].function.name", "tools[0].name"),
    ("tools[12].function.parameters", "tools[12].parameters"),
    ("tool_choice.function.name", "tool_choice.name"),
    ("min_tokens", "min_tokens"),
    ("my_max_tokens", "my_max_tokens"),
    ("engine_options.max_tokens", "engine_options.max_tokens"),
    ("chat_template_kwargs.reasoning_effort", "chat_template_kwargs.reasoning_effort"),
    ("messages_total", "messages_total"),
]


def supported(body: type[ChatBody] | type[ResponseBody]) -> set[str]:
    """The fields that a body does not merely accept or refuse."""
    return {name for name, field in body.model_fields.items() if field.annotation is not type(None)}


class Refusing(FakeEngine):
    """Refuses every request because of one field, as chat completions call it."""

    field = ""

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        if self.field:
            raise UserError(f"{self.field} does not work: change {self.field}", param=self.field)
        async for event in super().draw(request):
            yield event


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with open_api(tmp_path, engine=Refusing()) as running:
        yield running


@pytest.mark.parametrize(("chat", "response"), PLACES)
def test_a_place_is_renamed_in_parameter_and_message(chat: str, response: str) -> None:
    with pytest.raises(UserError) as caught, naming_fields(BODY.field_names):
        raise UserError(f"{chat} = 3 is too much ({chat}); lower {chat}.", param=chat)
    assert caught.value.param == response
    assert str(caught.value) == f"{response} = 3 is too much ({response}); lower {response}."


def test_what_is_quoted_may_be_the_clients_and_stays() -> None:
    """An apostrophe quotes nothing."""
    text = "'max_tokens: 5' is the client's text, \"max_tokens\" too; the model's {0} isn't {0}"
    with pytest.raises(UserError) as caught, naming_fields({"max_tokens": "max_output_tokens"}):
        raise UserError(text.format("max_tokens"))
    assert str(caught.value) == text.format("max_output_tokens")


def test_without_other_names_nothing_changes() -> None:
    with pytest.raises(UserError, match=r"^max_tokens is 3$") as caught, naming_fields({}):
        raise UserError("max_tokens is 3")
    assert caught.value.param is None


# Without n, because a response has one answer.
@pytest.mark.parametrize("field", sorted(supported(ChatBody) - {"n"}))
async def test_every_field_of_a_chat_has_a_name_in_a_response(api: Api, field: str) -> None:
    assert isinstance(api.engine, Refusing)
    api.engine.field = field
    response = await api.post(RESPONSES, model="base", input="Where is my order?")
    error = error_of(response)
    assert (response.status_code, error["message"].split().count(error["param"])) == (400, 2)
    named, *inner = error["param"].split(".")
    assert named in supported(ResponseBody)
    kind = ResponseBody.model_fields[named].annotation
    assert kind is not None
    assert all(name in kind.model_fields for name in inner)
    assert field == error["param"] or not re.search(rf"\b{field}\b", error["message"])


async def test_what_is_refused_before_the_engine_is_asked_is_named_so_too(api: Api) -> None:
    asked = {"model": "base", "min_tokens": 5}
    response = error_of(await api.post(RESPONSES, **asked, input="x", max_output_tokens=3))
    assert response["message"] == "min_tokens = 5 is out of range; use 0 to max_output_tokens, 3"
    chat = error_of(await api.post(CHAT, **asked, messages=MESSAGES, max_completion_tokens=3))
    assert chat["message"] == "min_tokens = 5 is out of range; use 0 to max_completion_tokens, 3"
    shape = {"format": {"type": "json_object"}}
    response = error_of(await api.post(RESPONSES, model="base", input="x", min_tokens=1, text=shape))
    assert response["message"].startswith("min_tokens contradicts text.format, whose text")
