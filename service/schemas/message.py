"""A message of a chat in a request."""

from typing import Annotated, Any, Literal

from pydantic import model_validator

from bonbon.errors import UserError
from bonbon.prompt import Message
from service.schemas.prompts import Text, TextContent
from service.schemas.request_body import Body
from service.schemas.tools import Call
from service.schemas.without_effect import BLANK, Ignored, Neutral


class ChatMessage(Body):
    """One turn. Text only. An assistant's may be sent back as any provider returned it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` is read as `system`."""
    content: TextContent
    """A string, or a list of text parts, which are joined by line ends; null beside an assistant's tool calls."""
    name: Annotated[Text | None, BLANK] = None
    """The speaker's name. The model sees it if its chat template writes names; rewards do not."""
    tool_calls: Annotated[list[Call] | None, BLANK] = None
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
