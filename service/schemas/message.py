"""A message of a chat in a request."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from bonbon.errors import UserError
from bonbon.prompt import Message
from service.schemas.prompts import Text, TextContent
from service.schemas.request_body import Body
from service.schemas.tools import Call
from service.schemas.without_effect import BLANK, Ignored, Neutral

MAX_TURNS = 4096
"""Maximum number of messages and tool calls of a chat: checking a thousand takes about 20 ms of the event loop."""


class ChatMessage(Body):
    """One turn. Text only. An assistant's may be sent back as any provider returned it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` is read as `system`."""
    content: TextContent
    """A string, or a list of text parts, which are joined by line ends; null beside an assistant's tool calls."""
    name: Annotated[Text | None, BLANK] = None
    """The speaker's name. The model sees it if its chat template writes names; rewards do not."""
    tool_calls: Annotated[Annotated[list[Call], Field(fail_fast=True)] | None, BLANK] = None
    """The calls that an assistant made."""
    tool_call_id: Annotated[str | None, BLANK] = None
    """The id of the call that a tool's message answers."""
    audio: Annotated[None, Neutral({})] = None
    function_call: Annotated[None, Neutral({})] = None
    reasoning: Annotated[None, Neutral("")] = None
    reasoning_content: Annotated[None, Neutral("")] = None
    reasoning_details: Annotated[None, Neutral([])] = None
    refusal: Annotated[None, Neutral("")] = None
    thinking_blocks: Annotated[None, Neutral([])] = None
    annotations: Ignored = None
    cache_control: Ignored = None
    parsed: Ignored = None
    provider_specific_fields: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def _let_calls_stand_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("tool_calls") and value.get("content") is None:
            return value | {"content": ""}
        return value

    @model_validator(mode="after")
    def _check_tools(self) -> "ChatMessage":
        if self.tool_calls and self.role != "assistant":
            raise UserError(f"tool_calls belong in an assistant's message, not {self.role}'s", param="messages")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise UserError("a tool's message needs tool_call_id, and no other message may have one", param="messages")
        return self

    def to_message(self) -> Message:
        message: Message = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


def check_turns(value: Any) -> Any:
    """Returns a chat's messages, or the items of an input, as they are.

    Raises PydanticCustomError if they and their tool calls are more than `MAX_TURNS`.
    """
    if not isinstance(value, list):
        return value
    calls = [turn["tool_calls"] for turn in value if isinstance(turn, dict) and "tool_calls" in turn]
    count = len(value) + sum(len(made) for made in calls if isinstance(made, list))
    if count > MAX_TURNS:
        raise PydanticCustomError(
            "too_many_turns",
            "{count} messages and tool calls are more than a chat may have, which is {most}: leave the oldest out",
            {"count": count, "most": MAX_TURNS},
        )
    return value


Messages = Annotated[
    list[ChatMessage], Field(min_length=1, max_length=MAX_TURNS, fail_fast=True), BeforeValidator(check_turns)
]
