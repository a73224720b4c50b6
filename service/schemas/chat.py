"""Body of a chat completion's request."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from bonbon.errors import UserError
from bonbon.prompt import Message, Prompt
from bonbon.tools import canonical
from service.ask import Ask
from service.schemas.body import AnswerBody, Body, Identifier
from service.schemas.prompts import Text, TextContent
from service.schemas.response_format import ResponseFormat
from service.schemas.tools import Call, ToolChoice, Tools
from service.schemas.without_effect import BLANK, WHOLE, Ignored, Neutral


class ChatMessage(Body):
    """One turn. Text only. An assistant's may be sent back as any provider returned it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` is read as `system`."""
    content: TextContent
    """A string, or a list of text parts, which are joined by line ends; null beside an assistant's tool calls."""
    name: Annotated[Text | None, BLANK] = None
    """Who speaks. The model sees it where its chat template writes names; rewards do not."""
    tool_calls: Annotated[list[Call] | None, BLANK] = None
    """What an assistant called."""
    tool_call_id: Annotated[str | None, BLANK] = None
    """Which call a tool's message answers."""
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


class ChatBody(AnswerBody):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    tools: Tools | None = None
    """Functions that the answer may call; only an engine that calls tools takes any."""
    tool_choice: ToolChoice | None = None
    """auto by default. What forces a call constrains the sampler, so such groups are never trained on."""
    parallel_tool_calls: bool | None = None
    """false: an answer has its first call only. true by default: how many calls it makes is the model's choice."""
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    """Likeliest tokens to report at each position; needs logprobs."""
    response_format: ResponseFormat | None = None
    """The shape of every candidate. Such groups are never trained on; not every engine can do it."""
    safety_identifier: Identifier | None = None
    """The newer name of user."""
    add_generation_prompt: Annotated[None, Neutral(True)] = None
    add_special_tokens: Annotated[None, Neutral(False)] = None
    audio: Annotated[None, Neutral()] = None
    chat_template_kwargs: Annotated[None, Neutral({})] = None
    continue_final_message: Annotated[None, Neutral(False)] = None
    echo: Annotated[None, Neutral(False)] = None
    function_call: Annotated[None, Neutral("none")] = None
    functions: Annotated[None, Neutral([])] = None
    include_reasoning: Annotated[None, Neutral(True)] = None
    modalities: Annotated[None, Neutral(["text"])] = None
    reasoning_effort: Annotated[None, Neutral("none")] = None
    service_tier: Annotated[None, Neutral("auto", "default")] = None
    verbosity: Annotated[None, Neutral("medium")] = None
    web_search_options: Annotated[None, Neutral()] = None
    prediction: Ignored = None

    @model_validator(mode="after")
    def _check_pairs(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise UserError("top_logprobs needs logprobs set to true", param="top_logprobs")
        for old, new in (("max_tokens", "max_completion_tokens"), ("user", "safety_identifier")):
            values = getattr(self, old), getattr(self, new)
            if None not in values and values[0] != values[1]:
                raise UserError(f"{old} and {new} mean the same but differ: leave {old} out", param=new)
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            raise UserError("tool_choice needs tools to choose from", param="tool_choice")
        return self

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def prompt(self) -> Prompt:
        """Its messages and tools. What means the default is left out, so that it changes no digest."""
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools or ()]
        choice = self.tool_choice if isinstance(self.tool_choice, str | None) else self.tool_choice.model_dump()
        return Prompt(
            messages=tuple(message.to_message() for message in self.messages),
            tools=canonical(tools) if tools else None,
            tool_choice=canonical(choice or "auto") if tools else None,
        )

    def ask(self, *, default_max_tokens: int, tenant: str, request_id: str, headers: Mapping[str, str]) -> Ask:
        """What this body asks for. Raises UserError for values that do not go together."""
        return self._ask(
            (self.prompt,),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            length_field="max_tokens" if self.max_completion_tokens is None else "max_completion_tokens",
            default_max_tokens=default_max_tokens,
            top_logprobs=self.top_logprobs or 0,
            response_format=self.response_format.canonical if self.response_format else None,
            user=self.user or self.safety_identifier or "",
            tenant=tenant,
            request_id=request_id,
            headers=headers,
        )
