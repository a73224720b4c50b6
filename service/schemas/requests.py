"""Request bodies of the OpenAI endpoints: a field is honoured, or refused by name."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from bonbon.engines.base import Sampling
from bonbon.errors import UserError
from bonbon.prompt import Prompt
from service.ask import Ask
from service.schemas.prompts import PromptList, TextContent

INT64 = 2**63
RETRY_COUNT = "x-stainless-retry-count"

Neutral = tuple[Any, ...]
"""Values of a field that ask for nothing."""

Stop = Annotated[
    list[Annotated[str, StringConstraints(min_length=1)]],
    Field(max_length=4),
    BeforeValidator(lambda value: [] if value is None else [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}),
]
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Identifier = Annotated[str, StringConstraints(max_length=512)]


class Body(BaseModel):
    """A JSON object without surprises: no unknown field, no silent conversion, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class StreamOptions(Body):
    """What a stream carries besides its text."""

    include_usage: bool | None = None
    """Send a last chunk without choices that has the usage."""
    include_obfuscation: Literal[False] | None = None
    """Only false: streams are not padded."""


class Extension(Body):
    """What bonbon does beyond OpenAI's interface."""

    candidates: bool = False
    """Return every candidate, with its reward and rank, in the response's `bonbon` object."""


class AnswerBody(Body):
    """What both endpoints accept."""

    refused: ClassVar[Mapping[str, Neutral]] = {
        "frequency_penalty": (0, None),
        "logit_bias": ({}, None),
        "moderation": (None,),
        "presence_penalty": (0, None),
    }
    """Fields of OpenAI's that are not supported, each with the values that may be sent all the same."""

    model: str
    """An alias (`bonbon`: whatever is best now), a version, or `base`."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens per candidate. Without it: the service's default, or less where the context has less room."""
    temperature: float | None = Field(None, ge=0, le=2)
    """1 by default. At 0 the answer is greedy: one draw."""
    top_p: float | None = Field(None, gt=0, le=1)
    """1 by default. Anything below changes what is sampled from, so such groups are never trained on."""
    n: int | None = Field(None, ge=1, le=128)
    """How many choices to return: the n best by reward, best first."""
    best_of: int | None = Field(None, ge=1)
    """How many candidates to draw for each prompt; by default what the model name means."""
    stop: Stop = []
    """Up to four strings that end a candidate; they are left out of its text."""
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    """The same request with the same seed draws the same candidates."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Identifier | None = None
    """Who asks: logged with the group, so that `bonbon pairs purge --user` finds it."""
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    """Logged with the group."""
    store: bool | None = None
    """false: nothing of this request is logged."""
    bonbon: Extension = Extension()

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name, neutral in cls.refused.items():
            if name in value and not any(value[name] == ok and type(value[name]) is not bool for ok in neutral):
                raise UserError(f"{name} is not supported here: leave it out", param=name)
        return {name: field for name, field in value.items() if name not in cls.refused}

    @model_validator(mode="after")
    def _check_stream_options(self) -> "AnswerBody":
        if self.stream_options is not None and not self.stream:
            raise UserError("stream_options is for streams only: set stream to true", param="stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def _ask(
        self,
        prompts: tuple[Prompt, ...],
        *,
        max_tokens: int | None,
        default_max_tokens: int,
        top_logprobs: int,
        user: str,
        request_id: str,
        headers: Mapping[str, str],
    ) -> Ask:
        retries = {RETRY_COUNT: headers[RETRY_COUNT][:16]} if headers.get(RETRY_COUNT, "0") != "0" else {}
        sampling = Sampling(
            max_tokens=default_max_tokens if max_tokens is None else max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(self.stop),
            seed=self.seed,
            top_logprobs=top_logprobs,
        )
        return Ask(
            model=self.model,
            prompts=prompts,
            sampling=sampling,
            n=self.n or 1,
            best_of=self.best_of,
            fit=max_tokens is None,
            store=self.store is not False,
            user=user,
            request_id=request_id,
            metadata=(self.metadata or {}) | retries,
        )


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
        "response_format": ({"type": "text"}, None),
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
            user=self.user or self.safety_identifier or "",
            request_id=request_id,
            headers=headers,
        )


class CompletionBody(AnswerBody):
    """POST /v1/completions."""

    refused: ClassVar[Mapping[str, Neutral]] = {**AnswerBody.refused, "suffix": ("", None)}

    prompt: PromptList
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    logprobs: int | None = Field(None, ge=0, le=5)
    """Likeliest tokens to report at each position, besides the one drawn."""
    echo: bool | None = None
    """Put the prompt before each choice's text."""

    @model_validator(mode="after")
    def _check_echo(self) -> "CompletionBody":
        if self.echo and self.logprobs is not None:
            raise UserError("echo with logprobs is not supported: the prompt is not scored", param="logprobs")
        return self

    def ask(self, *, default_max_tokens: int, request_id: str, headers: Mapping[str, str]) -> Ask:
        """What this body asks for. Raises UserError for values that do not go together."""
        return self._ask(
            self.prompt,
            max_tokens=self.max_tokens,
            default_max_tokens=default_max_tokens,
            top_logprobs=self.logprobs or 0,
            user=self.user or "",
            request_id=request_id,
            headers=headers,
        )
