"""A chat model behind an OpenAI-compatible endpoint, asked for one short verdict at a time."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from bonbon.concurrency.gather import gather_or_cancel
from bonbon.errors import RewardError
from bonbon.prompt import Prompt
from bonbon.rewards.remote.scoring_client import HttpClient, HttpOptions


class ChatOptions(HttpOptions):
    """An OpenAI-compatible endpoint; `target` is its base URL, such as `https://api.openai.com/v1`."""

    model: str = Field(min_length=1)
    """The model to ask."""
    timeout: float = Field(20.0, gt=0)
    """Seconds one attempt may take."""
    concurrency: int = Field(16, ge=1)
    """Most questions under way at once, over all callers."""
    max_tokens: int = Field(8, ge=1)
    """Tokens a verdict may take."""
    top_logprobs: int = Field(20, ge=0, le=20)
    """Alternatives to ask for per token; 0 for a model that reports none: then the verdict itself counts."""
    request: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request; they win over ours, and null leaves a field out."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The model's words, and for each token its text and the probabilities of the likeliest alternatives."""

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
    """Asks at temperature 0, at most `concurrency` questions at once."""

    def __init__(self, options: ChatOptions) -> None:
        self.options = options
        self.client = HttpClient(options)
        self._room = asyncio.Semaphore(options.concurrency)

    async def start(self) -> None:
        await self.client.start()

    async def stop(self) -> None:
        await self.client.stop()

    def version(self, *templates: str) -> str:
        """Changes with the model, the request's fields and the wording."""
        options = self.options
        asked = repr((options.max_tokens, options.top_logprobs, sorted(options.request.items()), templates))
        return f"{options.model}@{sha256(asked.encode()).hexdigest()[:12]}"

    async def ask(self, system: str, questions: Iterable[str]) -> list[Verdict]:
        """One verdict per question, in order. Raises RewardError when one of them fails."""
        with self.client.guarded():
            return await gather_or_cancel(self._ask(system, question) for question in questions)

    async def _ask(self, system: str, user: str) -> Verdict:
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
        async with self._room:
            answer = await self.client.post(body, "/chat/completions")
        try:
            choice = _Completion.model_validate(answer).choices[0]
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            raise RewardError(f"the judge's answer is no chat completion: {where}: {wrong['msg']}") from error
        tokens = (choice.logprobs and choice.logprobs.content) or []
        return Verdict(choice.message.content or "", tuple((token.token, _probabilities(token)) for token in tokens))


def _probabilities(token: _Token) -> dict[str, float]:
    """By text without white space and case: ` 7` and `7` say the same."""
    total: dict[str, float] = {}
    for alternative in token.top_logprobs:
        text = alternative.token.strip().upper()
        # Servers write -9999 or less for what cannot happen.
        total[text] = total.get(text, 0.0) + math.exp(min(alternative.logprob, 0.0))
    return total


def fenced(name: str, text: str) -> str:
    """`text` between markers that it cannot contain: they are made from its own digest."""
    mark = f"{name} {sha256(text.encode()).hexdigest()[:16]}"
    return f"<<<{mark}>>>\n{text}\n<<<end of {mark}>>>"


def as_text(prompt: Prompt) -> str:
    """The prompt for a reader. Raises RewardError for token ids, which only their own tokenizer can read."""
    if prompt.messages is not None:
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)
    if prompt.text is None:
        raise RewardError("this reward reads text, and the prompt is token ids")
    return prompt.text


def first_of(verdict: Verdict, wanted: Sequence[str]) -> int | None:
    """Position of the first token that, white space and case aside, is one of `wanted`, with alternatives given."""
    return next(
        (i for i, (text, chances) in enumerate(verdict.tokens) if text.strip().upper() in wanted and chances), None
    )
