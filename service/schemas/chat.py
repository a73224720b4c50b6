"""Body of a chat completion's request."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bonbon.errors import UserError
from bonbon.prompt import Prompt
from service.ask import Ask
from service.schemas.body import AnswerBody, Body, Identifier, Neutral
from service.schemas.prompts import TextContent
from service.schemas.response_format import ResponseFormat


class ChatMessage(Body):
    """One turn. Text only."""

    may_be_empty: ClassVar[frozenset[str]] = frozenset(
        {"annotations", "audio", "function_call", "name", "refusal", "tool_call_id", "tool_calls"}
    )

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is read as `system`."""
    content: TextContent
    """A string, or a list of text parts, which are joined by line ends."""

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: Any) -> Any:
        """An assistant's message may come back as a client got it, with its empty fields."""
        if not isinstance(value, dict):
            return value
        return {name: field for name, field in value.items() if field or name not in cls.may_be_empty}


class ChatBody(AnswerBody):
    """POST /v1/chat/completions."""

    refused: ClassVar[Mapping[str, Neutral]] = {
        **AnswerBody.refused,
        "audio": (None,),
        "function_call": ("none", None),
        "functions": ([], None),
        "modalities": (["text"], None),
        "parallel_tool_calls": (None,),
        "prediction": (None,),
        "prompt_cache_options": (None,),
        "prompt_cache_retention": (None,),
        "reasoning_effort": ("none", None),
        "service_tier": ("auto", "default", None),
        "tool_choice": ("none", "auto", None),
        "tools": ([], None),
        "verbosity": ("medium", None),
        "web_search_options": (None,),
    }

    messages: list[ChatMessage] = Field(min_length=1)
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
        return self

    def ask(self, *, default_max_tokens: int, request_id: str, headers: Mapping[str, str]) -> Ask:
        """What this body asks for. Raises UserError for values that do not go together."""
        messages = tuple(
            {"role": "system" if m.role == "developer" else m.role, "content": m.content} for m in self.messages
        )
        return self._ask(
            (Prompt(messages=messages),),  # type: ignore[arg-type]
            max_tokens=self.max_completion_tokens or self.max_tokens,
            default_max_tokens=default_max_tokens,
            top_logprobs=self.top_logprobs or 0,
            response_format=self.response_format.canonical if self.response_format else None,
            user=self.user or self.safety_identifier or "",
            request_id=request_id,
            headers=headers,
        )
