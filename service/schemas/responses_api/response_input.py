"""Reads the `input` of a request for a response as a chat."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, StringConstraints, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from service.schemas.message import MAX_TURNS, ChatMessage, check_turns
from service.schemas.prompts import STRING, Text, join_text
from service.schemas.request_body import Body
from service.schemas.tools import Call, CalledFunction, FunctionName
from service.schemas.without_effect import BLANK, Ignored, Neutral

TEXT_PARTS = ("input_text", "output_text")
CallId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _TextOrParts:
    """Returns the schema of a content that is a string or a list of text parts."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        part = {
            "type": "object",
            "properties": {"type": {"enum": list(TEXT_PARTS)}, "text": STRING},
            "required": ["type", "text"],
        }
        return {"anyOf": [STRING, {"type": "array", "items": part}]}


class _OrText:
    """Returns the schema of a list that may also be a string."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [STRING, handler(schema)]}


Content = Annotated[str, BeforeValidator(partial(join_text, kinds=TEXT_PARTS)), _TextOrParts()]
"""A string, or a list of text parts, which are joined by line ends."""


class InputMessage(Body):
    """A message. The role `developer` is read as `system`."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: Ignored = None
    phase: Ignored = None
    status: Ignored = None


class InputCall(Body):
    """A call of a function by the model."""

    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: Text
    """The arguments as JSON text, as the model wrote it."""
    async_: Annotated[None, Neutral(False)] = Field(None, alias="async")
    caller: Annotated[None, Neutral({"type": "direct"})] = None
    namespace: Annotated[None, Neutral("")] = None
    id: Ignored = None
    status: Ignored = None


class InputCallOutput(Body):
    """The output of a function that the model called."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Content
    name: Annotated[Text | None, BLANK] = None
    """The name of the function. The model sees it if its chat template writes names."""
    caller: Annotated[None, Neutral({"type": "direct"})] = None
    namespace: Annotated[None, Neutral("")] = None
    id: Ignored = None
    status: Ignored = None


class InputReasoning(Body):
    """Reasoning without a readable text; what is encrypted can be read by the provider alone that wrote it."""

    type: Literal["reasoning"]
    summary: Annotated[None, Neutral([], why="reasoning cannot be given to the model: leave the item out")] = None
    content: Annotated[None, Neutral([], why="reasoning cannot be given to the model: leave the item out")] = None
    encrypted_content: Ignored = None
    id: Ignored = None
    status: Ignored = None


ITEMS: dict[str, type[Body]] = {
    "message": InputMessage,
    "function_call": InputCall,
    "function_call_output": InputCallOutput,
    "reasoning": InputReasoning,
}


def _parse_item(value: Any) -> Body:
    """Raises ValidationError and PydanticCustomError. Unlike those of a union, its errors have the item's own paths."""
    if not isinstance(value, dict):
        raise PydanticCustomError("input_item", "an item of the input must be an object")
    kind = value.get("type") or "message"
    if not isinstance(kind, str):
        kind = "a type that is no string"
    if kind in ITEMS:
        return ITEMS[kind].model_validate(value)
    if kind == "item_reference":
        why = (
            "responses are not stored here, so no item can be referred to: send the item itself, as clients do when "
            "store is false"
        )
    else:
        why = f"{kind[:40]!r} is not supported here: an item of the input may be {', '.join(ITEMS)}"
    error = InitErrorDetails(type=PydanticCustomError("unsupported", "{why}", {"why": why}), loc=("type",), input=kind)
    raise ValidationError.from_exception_data("input", [error])


Item = Annotated[InputMessage | InputCall | InputCallOutput | InputReasoning, BeforeValidator(_parse_item)]
Input = Annotated[
    list[Item],
    Field(min_length=1, max_length=MAX_TURNS, fail_fast=True),
    BeforeValidator(check_turns),
    BeforeValidator(lambda value: [{"role": "user", "content": value}] if isinstance(value, str) else value),
    _OrText(),
]


def messages_of(items: Sequence[Item], instructions: str | None = None) -> list[ChatMessage]:
    """The chat that `items` are, after a system message with the instructions.

    Calls become a part of the assistant's message before them, as chat completions have it, or of one without text.
    """
    messages = [] if instructions is None else [ChatMessage(role="system", content=instructions)]
    for kind, group in groupby(items, type):
        if kind is InputCall:
            calls = [_call(item) for item in group if isinstance(item, InputCall)]
            continues = bool(messages) and messages[-1].role == "assistant"
            said = messages.pop() if continues else ChatMessage(role="assistant", content="")
            messages.append(said.model_copy(update={"tool_calls": [*(said.tool_calls or []), *calls]}))
            continue
        for item in group:
            if isinstance(item, InputMessage):
                messages.append(ChatMessage(role=item.role, content=item.content))
            elif isinstance(item, InputCallOutput):
                messages.append(
                    ChatMessage(role="tool", content=item.output, name=item.name, tool_call_id=item.call_id)
                )
    return messages


def _call(item: InputCall) -> Call:
    return Call(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
