"""A reward model served by vLLM's pooling runner: `python -m vllm.entrypoints.openai.api_server --runner pooling`."""

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal, TypeVar

import structlog
from pydantic import BaseModel, Field, ValidationError, field_validator

from bonbon.concurrency.gather import gather_or_cancel
from bonbon.errors import RewardError
from bonbon.prompt import Prompt
from bonbon.rewards.remote.scoring_client import HttpClient, HttpOptions, Refused
from bonbon.rewards.reward import Reward
from bonbon.shown_values import first_problem

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=BaseModel)

TOO_LONG = b"maximum context length"


class VllmOptions(HttpOptions):
    """A server with a sequence-classification model; `target` is its URL, such as `http://10.0.0.9:8000`."""

    model: str = ""
    """The name under which the server serves the model; not needed when it serves only one."""
    label: int | None = Field(None, ge=0)
    """The index of the output to use, for a model with several."""
    output: Literal["logit", "logprob"] | None = None
    """Whether the score is that output itself (`logit`) or, where the outputs are mutually exclusive classes, the
    log-probability of the class (`logprob`). Required for a model with several outputs, because the server does not
    report it."""
    max_length: int | None = Field(None, ge=8)
    """The number of tokens to which texts are truncated; the default is the server's maximum."""
    version: str = ""
    """A part of the reward's version. Change it when the server's weights change, which the server does not report."""

    @field_validator("target")
    @classmethod
    def _strip(cls, value: str) -> str:
        return value.rstrip("/").removesuffix("/v1")


class _Card(BaseModel):
    id: str
    root: str | None = None
    max_model_len: int


class _Cards(BaseModel):
    data: list[_Card]


class _Tokens(BaseModel):
    tokens: list[int]


class _Class(BaseModel):
    index: int
    probs: list[float] = Field(min_length=1)


class _Classes(BaseModel):
    data: list[_Class]


class VllmReward(Reward):
    """Scores what the server's chat template renders of prompt and completion, as the `classifier` reward does.

    Texts that exceed the length are truncated at the prompt's start, so completions stay whole as long as they fit. The
    server batches over all requests of all gateways.
    """

    name = "vllm"

    def __init__(self, options: VllmOptions) -> None:
        self.options = options
        self.client = HttpClient(options)
        self.truncated = 0
        self._card: _Card | None = None

    @property
    def version(self) -> str:
        """Returns the name of the model, and a digest of where it came from and how it is read."""
        if self._card is None:
            return self.options.version or "not asked yet"
        options, card = self.options, self._card
        reading = repr((card.root, options.version, options.label, options.output == "logit", self._length(card)))
        return f"{card.id}@{sha256(reading.encode()).hexdigest()[:12]}"

    async def start(self) -> None:
        await self.client.start()

    async def stop(self) -> None:
        await self.client.stop()

    async def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float]:
        if prompt.token_ids is not None:
            raise RewardError("the reward model reads text, but this prompt consists of token ids of another tokenizer")
        with self.client.guarded():
            self._card = card = self._card or await self._find()
            texts = [_text(prompt, completion) for completion in completions]
            if self._length(card) == card.max_model_len:
                try:
                    return await self._whole(card, texts)
                except Refused as error:
                    if TOO_LONG not in error.content:
                        raise
            return await self._classify(card, await gather_or_cancel(self._cut(card, text) for text in texts))

    async def _find(self) -> _Card:
        cards = _read(_Cards, await self.client.get("/v1/models")).data
        found = [card for card in cards if self.options.model in ("", card.id)]
        if len(found) != 1:
            names = ", ".join(card.id for card in cards)
            raise RewardError(
                f"{self.options.target} serves {names or 'no model'}: set the reward's model to one that it serves"
            )
        return found[0]

    async def _whole(self, card: _Card, texts: list[dict[str, Any]]) -> list[float]:
        """Returns the scores of texts without truncating them.

        Raises Refused when the server finds one of them too long.
        """
        if "messages" in texts[0]:  # The server accepts one chat per call.
            return await gather_or_cancel(self._score(card, chat) for chat in texts)
        return await self._classify(card, [text["prompt"] for text in texts])

    async def _cut(self, card: _Card, text: dict[str, Any]) -> list[int]:
        ids, limit = await self._tokens(card, text), self._length(card)
        if len(ids) <= limit:
            return ids
        self.truncated += 1
        log.warning("truncated a text to the reward model's maximum length", tokens=len(ids), length=limit)
        # A chat begins with its template's first token; a text with the token that the tokenizer adds there, if any.
        opening = ids[:1] if "messages" in text or ids[0] in await self._tokens(card, {"prompt": ""}) else []
        return opening + ids[len(ids) - limit + len(opening) :]

    async def _tokens(self, card: _Card, text: dict[str, Any]) -> list[int]:
        body = {"model": card.id} | text | ({"add_generation_prompt": False} if "messages" in text else {})
        return _read(_Tokens, await self.client.post(body, "/tokenize")).tokens

    async def _score(self, card: _Card, chat: dict[str, Any]) -> float:
        (score,) = await self._scores(card, chat, 1)
        return score

    async def _classify(self, card: _Card, inputs: list[str] | list[list[int]]) -> list[float]:
        return await self._scores(card, {"input": inputs}, len(inputs))

    async def _scores(self, card: _Card, inputs: dict[str, Any], count: int) -> list[float]:
        answer = await self.client.post({"model": card.id, "use_activation": False} | inputs, "/classify")
        classes = sorted(_read(_Classes, answer).data, key=lambda one: one.index)
        if [one.index for one in classes] != list(range(count)):
            raise RewardError(f"the reward model returned {len(classes)} classes for {count} texts")
        return [self._value(one.probs) for one in classes]

    def _value(self, logits: list[float]) -> float:
        label = self.options.label
        if (label is None and len(logits) > 1) or (label is not None and label >= len(logits)):
            raise RewardError(f"the reward model has {len(logits)} labels: set label to one of 0 to {len(logits) - 1}")
        if len(logits) > 1 and self.options.output is None:
            raise RewardError(
                f"the reward model has {len(logits)} labels: set output to 'logit' when each is an independent score, "
                "or to 'logprob' when they are mutually exclusive classes"
            )
        value = logits[label or 0]
        if len(logits) > 1 and self.options.output == "logprob":
            highest = max(logits)
            value -= highest + math.log(sum(math.exp(logit - highest) for logit in logits))
        if not math.isfinite(value):
            raise RewardError("the reward model returned a score that is not finite")
        return value

    def _length(self, card: _Card) -> int:
        return min(self.options.max_length or card.max_model_len, card.max_model_len)


def _text(prompt: Prompt, completion: str) -> dict[str, Any]:
    """Returns the fields for /tokenize. /classify calls the field of a text `input`."""
    if prompt.messages is None:
        return {"prompt": (prompt.text or "") + completion}
    return {"messages": [*prompt.messages, {"role": "assistant", "content": completion}]}


def _read(model: type[T], found: object) -> T:
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise RewardError(f"the reward server returned an invalid answer: {first_problem(error)}") from error


def build(options: Mapping[str, Any]) -> VllmReward:
    """Builds the reward from VllmOptions."""
    return VllmReward(VllmOptions.read("vllm", options))
