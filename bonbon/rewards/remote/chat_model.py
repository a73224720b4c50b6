"""A chat model behind an OpenAI-compatible endpoint, which answers questions with a short verdict."""

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from bonbon.concurrency.gather import gather_or_cancel
from bonbon.errors import RewardError
from bonbon.prompt import Prompt
from bonbon.rewards.remote.scoring_client import HttpClient, HttpOptions
from bonbon.rewards.reward import Reward
from bonbon.shown_values import first_problem


class ChatOptions(HttpOptions):
    """An OpenAI-compatible endpoint; `target` is its base URL, such as `https://api.openai.com/v1`."""

    model: str = Field(min_length=1)
    """The name of the model to use."""
    timeout: float = Field(20.0, gt=0)
    """The seconds that one attempt may take."""
    concurrency: int = Field(16, ge=1)
    """The maximum number of concurrent questions, over all callers."""
    max_tokens: int = Field(8, ge=1)
    """The maximum number of tokens of a verdict."""
    top_logprobs: int = Field(20, ge=0, le=20)
    """The number of alternatives to request per token; use 0 for a model that reports none, whose written verdict then
    counts."""
    request: dict[str, Any] = Field(default_factory=dict)
    """Additional fields of the request. They override bonbon's own, and null removes a field."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The model's text, and for each token its text and the probabilities of the most likely alternatives."""

    text: str
    tokens: tuple[tuple[str, dict[str, float]], ...]


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(BaseModel):
    token: str
    top_logprobs: list[_Alternative] = []


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _Logprobs | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class ChatModel:
    """Sends questions at temperature 0, at most `concurrency` of them concurrently."""

    def __init__(self, options: ChatOptions) -> None:
        self.options = options
        self.client = HttpClient(options)
        self._slots = asyncio.Semaphore(options.concurrency)

    async def start(self) -> None:
        await self.client.start()

    async def stop(self) -> None:
        await self.client.stop()

    def version(self, *templates: str) -> str:
        """Returns a version that changes with the model, the request's fields and the templates."""
        options = self.options
        fields = repr((options.max_tokens, options.top_logprobs, sorted(options.request.items()), templates))
        return f"{options.model}@{sha256(fields.encode()).hexdigest()[:12]}"

    async def verdicts(self, system: str, questions: Iterable[str]) -> list[Verdict]:
        """Returns one verdict per question, in order. Raises RewardError when any of them fails."""
        with self.client.guarded():
            return await gather_or_cancel(self._verdict(system, question) for question in questions)

    async def _verdict(self, system: str, user: str) -> Verdict:
        options = self.options
        body: dict[str, Any] = {
            "model": options.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": 0,
            "max_tokens": options.max_tokens,
        }
        if options.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": options.top_logprobs}
        body = {name: value for name, value in (body | options.request).items() if value is not None}
        async with self._slots:
            answer = await self.client.post(body, "/chat/completions")
        try:
            choice = _Completion.model_validate(answer).choices[0]
        except ValidationError as error:
            raise RewardError(f"the judge's answer is not a chat completion: {first_problem(error)}") from error
        tokens = (choice.logprobs and choice.logprobs.content) or []
        return Verdict(choice.message.content or "", tuple((token.token, _probabilities(token)) for token in tokens))


class ChatReward(Reward):
    """A reward that puts questions to a chat model; a subclass gives the templates of its prompts."""

    system: str
    question: str

    def __init__(self, options: ChatOptions) -> None:
        self.chat = ChatModel(options)

    @property
    def version(self) -> str:
        return self.chat.version(self.system, self.question)

    async def start(self) -> None:
        await self.chat.start()

    async def stop(self) -> None:
        await self.chat.stop()

    async def verdicts(self, questions: Iterable[Mapping[str, str]]) -> list[Verdict]:
        """Returns one verdict per question, in order, each given by the fields of `question`. Raises RewardError."""
        return await self.chat.verdicts(self.system, (self.question.format(**fields) for fields in questions))


def _probabilities(token: _Token) -> dict[str, float]:
    """Adds up the probabilities of texts that differ only in white space and case, such as ` 7` and `7`."""
    total: dict[str, float] = {}
    for alternative in token.top_logprobs:
        text = alternative.token.strip().upper()
        # Servers write -9999 or less for a probability of 0.
        total[text] = total.get(text, 0.0) + math.exp(min(alternative.logprob, 0.0))
    return total


def fenced(name: str, text: str) -> str:
    """Returns `text` between markers that it cannot contain, because they include its digest."""
    mark = f"{name} {sha256(text.encode()).hexdigest()[:16]}"
    return f"<<<{mark}>>>\n{text}\n<<<end of {mark}>>>"


def as_text(prompt: Prompt) -> str:
    """Returns the prompt as text. Raises RewardError for token ids, which only their own tokenizer can decode."""
    if prompt.messages is not None:
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)
    if prompt.text is None:
        raise RewardError("this reward reads text, but the prompt consists of token ids")
    return prompt.text


def first_of(verdict: Verdict, wanted: Sequence[str]) -> int | None:
    """Returns the position of the first token with alternatives that is one of `wanted`, up to white space and case."""
    return next(
        (i for i, (text, chances) in enumerate(verdict.tokens) if text.strip().upper() in wanted and chances), None
    )
