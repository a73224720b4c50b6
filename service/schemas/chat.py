"""Body of a chat completion's request."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bonbon.errors import UserError
from bonbon.prompt import Message, Prompt
from bonbon.tools import canonical
from service.ask import Ask
from service.schemas.body import AnswerBody, Body, Identifier, Neutral
from service.schemas.prompts import TextContent
from service.schemas.response_format import ResponseFormat
from service.schemas.tools import Call, ToolChoice, Tools


class ChatMessage(Body):
    """One turn. Text only."""

    may_be_empty: ClassVar[frozenset[str]] = frozenset(
        {"annotations", "audio", "function_call", "name", "refusal", "tool_call_id", "tool_calls"}
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` is read as `system`."""
    content: TextContent
    """A string, or a list of text parts, which are joined by line ends; null beside an assistant's tool calls."""
    tool_calls: list[Call] | None = None
    """What an assistant called."""
    tool_call_id: str | None = None
    """Which call a tool's message answers."""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: Any) -> Any:
        """An assistant's message may come back as a client got it, with its empty fields."""
        if not isinstance(value, dict):
            return value
        present = {name: field for name, field in value.items() if field or name not in cls.may_be_empty}
        if "tool_calls" in present and present.get("content") is None:
            present["content"] = ""
        return present

    @model_validator(mode="after")
    def _check_tools(self) -> "ChatMessage":
        if self.tool_calls and self.role != "assistant":
            raise UserError(f"tool_calls belong in an assistant's message, not {self.role}'s", param="messages")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise UserError("a tool's message needs tool_call_id, and no other message may have one", param="messages")
        return self

    def to_message(self) -> Message:
        message: Message = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class ChatBody(AnswerBody):
    """POST /v1/chat/completions."""

    refused: ClassVar[Mapping[str, Neutral]] = {
        **AnswerBody.refused,
        "audio": (None,),
        "function_call": ("none", None),
        "functions": ([], None),
        "modalities": (["text"], None),
        "prediction": (None,),
        "prompt_cache_options": (None,),
        "prompt_cache_retention": (None,),
        "reasoning_effort": ("none", None),
        "service_tier": ("auto", "default", None),
        "verbosity": ("medium", None),
        "web_search_options": (None,),
    }

    messages: list[ChatMessage] = Field(min_length=1)
    tools: Tools | None = None
    """Functions that the answer may call; only an engine that calls tools takes any."""
    tool_choice: ToolChoice | None = None
    """auto by default. What forces a call constrains the sampler, so such groups are never trained on."""
    parallel_tool_calls: Literal[True] | None = None
    """Only true: how many calls an answer makes is the model's choice."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Likeliest tokens to report at each position; needs logprobs."""
    response_format: ResponseFormat | None = None
    """The shape of every candidate. Such groups are never trained on; not every engine can do it."""
    safety_identifier: Identifier | None = None
    """The newer name of user."""
    prompt_cache_key: str | None = None
    """A hint that changes no answer; prompts are shared among a request's candidates in any case."""

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
            default_max_tokens=default_max_tokens,
            top_logprobs=self.top_logprobs or 0,
            response_format=self.response_format.canonical if self.response_format else None,
            user=self.user or self.safety_identifier or "",
            tenant=tenant,
            request_id=request_id,
            headers=headers,
        )
