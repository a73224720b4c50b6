"""What the request bodies of all endpoints that answer have in common.

A field that changes the answer is honoured or refused by name; one that changes nothing is accepted. Every body
declares the fields that it knows: those that it honours, those that are `Neutral`, and those that are `Ignored`.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from bonbon.engines.engine import Sampling
from bonbon.engines.request_limits import MAX_LOGIT_BIASES, check_sampling
from bonbon.errors import UserError
from bonbon.prompt import Prompt
from service.answering.completion_request import CompletionRequest
from service.schemas.without_effect import WHOLE, Ignored, Neutral, asking_nothing

MAX_FIELDS = 256
"""Fields that an object may have: each that is not known would be an error of its own."""
INT32, INT64 = 2**31, 2**63
RETRY_COUNT = "x-stainless-retry-count"
IDEMPOTENCY_KEY = "idempotency-key"
UNDECISIVE = {
    "messages",
    "prompt",
    "input",
    "instructions",
    "tools",
    "tool_choice",
    "stream",
    "stream_options",
    "store",
}
"""Fields that are left out of a request's fingerprint: the prompt is there as a digest, and the others change nothing
of what is answered."""


def _at_most(most: int) -> BeforeValidator:
    """For an object of any keys: refuses one with more than `most` before each of its values can be an error."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError(
                "too_long", "{count} keys are more than the {most} allowed", {"count": len(value), "most": most}
            )
        return value

    return BeforeValidator(check)


def _by_token_id(value: Any) -> Any:
    """Converts token ids from JSON, whose keys are strings."""
    if not isinstance(value, dict):
        return value
    try:
        return {int(token): bias for token, bias in value.items()}
    except ValueError as error:
        raise PydanticCustomError("token_id", "every key must be a token id, such as 42") from error


Stop = Annotated[
    list[Annotated[str, StringConstraints(min_length=1)]],
    Field(max_length=8),
    BeforeValidator(lambda value: [] if value is None else [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}),
]
LogitBias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_LOGIT_BIASES),
    BeforeValidator(_by_token_id),
    _at_most(MAX_LOGIT_BIASES),
]
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Identifier = Annotated[str, StringConstraints(max_length=512)]


class Body(BaseModel):
    """A JSON object without surprises: no unknown field, no silent conversion, no NaN. A null field is absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > MAX_FIELDS:
            raise PydanticCustomError(
                "too_many_fields",
                "{count} fields are more than any object of a request has: leave out what is not in /openapi.json",
                {"count": len(value)},
            )
        required = {field.alias or name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: field for name, field in value.items() if field is not None or name in required}


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None
    """Whether to send a last chunk without choices that contains the usage."""
    include_obfuscation: Annotated[None, Neutral(False)] = None
    continuous_usage_stats: Annotated[None, Neutral(False)] = None


class Extension(Body):
    """Options that bonbon adds to OpenAI's API."""

    candidates: bool = False
    """Whether to return every candidate, with its reward and rank, in the response's `bonbon` object."""


class AnswerBody(Body):
    """Fields that every endpoint accepts that answers a prompt."""

    model: str
    """An alias (`bonbon` is the current champion), a version, or `base`."""
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    """Maximum number of tokens per candidate. The default is set by the service and reduced to the free space in the
    context."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature, by default 1. At 0 the answer is greedy, with a single candidate."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling, by default 1. Smaller values change the distribution, so such groups are never trained on."""
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = None
    """Number of choices to return: the n best by reward, best first."""
    best_of: Annotated[int, Field(ge=1), WHOLE] | None = None
    """Number of candidates to sample for each prompt. The default depends on the model name."""
    top_k: Annotated[Annotated[int, Field(ge=-1, lt=INT32), WHOLE] | None, asking_nothing(-1, 0)] = None
    """Number of most likely tokens to sample from; -1 and 0 stand for all."""
    min_p: Annotated[Annotated[float, Field(ge=0, le=1)] | None, asking_nothing(0)] = None
    """Exclude tokens whose probability is below this share of the most likely token's."""
    repetition_penalty: Annotated[Annotated[float, Field(ge=0.01, le=100)] | None, asking_nothing(1)] = None
    """Values above 1 make tokens less likely that the prompt or the answer already contains."""
    frequency_penalty: Annotated[Annotated[float, Field(ge=-2, le=2)] | None, asking_nothing(0)] = None
    """Subtracted from a token's logit once for each occurrence in the answer."""
    presence_penalty: Annotated[Annotated[float, Field(ge=-2, le=2)] | None, asking_nothing(0)] = None
    """Subtracted from a token's logit once if the answer contains it."""
    logit_bias: Annotated[LogitBias | None, asking_nothing({})] = None
    """Values to add to the logits of tokens, by token id."""
    ignore_eos: Annotated[bool | None, asking_nothing(False)] = None
    """Continue after tokens that normally end an answer, up to max_tokens or a stop string."""
    min_tokens: Annotated[Annotated[int, Field(ge=0, lt=INT32), WHOLE] | None, asking_nothing(0)] = None
    """Minimum number of tokens before an answer may end."""
    stop: Stop = []
    """Up to eight strings that end a candidate; they are not part of its text."""
    seed: Annotated[int, Field(ge=-INT64, lt=INT64), WHOLE] | None = None
    """The same request with the same seed gets the same candidates."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Identifier | None = None
    """The end user. It is logged with the group, so that `bonbon pairs purge --user` finds it."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16), _at_most(16)] | None = None
    """Key-value pairs to log with the group."""
    store: bool | None = None
    """Whether to log this request."""
    bonbon: Extension = Extension()

    allowed_token_ids: Annotated[None, Neutral([])] = None
    bad_words: Annotated[None, Neutral([])] = None
    early_stopping: Annotated[None, Neutral(False)] = None
    include_stop_str_in_output: Annotated[None, Neutral(False)] = None
    length_penalty: Annotated[None, Neutral(1)] = None
    moderation: Annotated[None, Neutral()] = None
    return_token_ids: Annotated[None, Neutral(False)] = None
    skip_special_tokens: Annotated[None, Neutral(True)] = None
    spaces_between_special_tokens: Annotated[None, Neutral(True)] = None
    stop_token_ids: Annotated[None, Neutral([])] = None
    typical_p: Annotated[None, Neutral(1)] = None
    use_beam_search: Annotated[None, Neutral(False)] = None
    priority: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> "AnswerBody":
        if self.stream_options is not None and not self.stream:
            raise UserError("stream_options is for streams only: set stream to true", param="stream_options")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer contains log-probabilities."""
        raise NotImplementedError

    @property
    def field_names(self) -> Mapping[str, str]:
        """The fields that have a different name in this body than in chat completions, by their name in chat
        completions."""
        return {}

    def _check_same(self, old: str, new: str) -> None:
        """Raises UserError when both names of a field are given with different values."""
        values = getattr(self, old), getattr(self, new)
        if None not in values and values[0] != values[1]:
            raise UserError(f"{old} and {new} mean the same but differ: leave {old} out", param=new)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def completion_request(
        self, *, default_max_tokens: int, tenant: str, request_id: str, headers: Mapping[str, str]
    ) -> CompletionRequest:
        """Returns the request of this body. Raises UserError for values that contradict each other."""
        raise NotImplementedError

    def _fingerprint(self, prompts: tuple[Prompt, ...]) -> str:
        """Returns a digest of everything that decides the answer. Streaming does not change it."""
        fields = self.model_dump(mode="json", exclude=UNDECISIVE, exclude_none=True)
        asked = {"prompts": [prompt.digest for prompt in prompts]} | fields
        return sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _completion_request(
        self,
        prompts: tuple[Prompt, ...],
        *,
        max_tokens: int | None,
        default_max_tokens: int,
        top_logprobs: int,
        prompt_logprobs: bool = False,
        response_format: str | None = None,
        user: str,
        tenant: str,
        request_id: str,
        headers: Mapping[str, str],
    ) -> CompletionRequest:
        retries = {RETRY_COUNT: headers[RETRY_COUNT][:16]} if headers.get(RETRY_COUNT, "0") != "0" else {}
        idempotency = _idempotency(headers)
        if idempotency is not None and (self.wants_logprobs or any(prompt.tools for prompt in prompts)):
            raise UserError(
                f"{IDEMPOTENCY_KEY} goes with neither logprobs nor tools: the log, which an answer is repeated from, "
                "has no log-probability of a single token and tool calls as text only",
                param=IDEMPOTENCY_KEY,
            )
        sampling = Sampling(
            max_tokens=default_max_tokens if max_tokens is None else max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(self.stop),
            seed=self.seed,
            top_logprobs=top_logprobs,
            response_format=response_format,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=tuple(sorted((self.logit_bias or {}).items())),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
        )
        check_sampling(sampling)
        return CompletionRequest(
            model=self.model,
            prompts=prompts,
            sampling=sampling,
            n=self.n or 1,
            best_of=self.best_of,
            fit=max_tokens is None,
            field_names=self.field_names,
            store=self.store is not False,
            tenant=tenant,
            user=user,
            request_id=request_id,
            metadata=(self.metadata or {}) | retries,
            idempotency=idempotency,
            fingerprint=None if idempotency is None else self._fingerprint(prompts),
            retry=bool(retries),
            prompt_logprobs=prompt_logprobs,
        )


def _idempotency(headers: Mapping[str, str]) -> str | None:
    key = headers.get(IDEMPOTENCY_KEY)
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise UserError(f"{IDEMPOTENCY_KEY} must be 1 to 255 printable ASCII characters", param=IDEMPOTENCY_KEY)
    return key
