"""The engine: whatever draws completions of a prompt from a version of the policy."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from bonbon.errors import UserError
from bonbon.prompt import Prompt
from bonbon.tools import ToolCallDelta

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How candidates are drawn.

    With a `seed`, candidate i of a request draws from a generator of its own seeded by (seed, i): the same request
    gives the same candidates, up to the floating-point differences between batches. `temperature` 0 is greedy.
    `top_p` 1 and `top_k` 0 leave the distribution whole; anything else changes the sampler's support.
    `top_logprobs` is how many alternatives to report per token (0: none).
    `response_format` holds every candidate's text to a shape: OpenAI's object as `response_format.canonical` writes
    it, None for any text. It changes the sampler's support, too, after the changes to the logits below and before the
    temperature. An engine that cannot do it raises UserError.

    The other fields mean what they mean in vLLM's SamplingParams, and their defaults change nothing. Logits are changed
    in this order: `logit_bias` is added to them as (token id, bias) pairs; tokens that end a candidate are impossible
    before `min_tokens` tokens; `repetition_penalty` divides the positive logits and multiplies the negative logits of
    tokens in the prompt and the candidate; `frequency_penalty` is subtracted once for each time that the candidate has
    the token, and `presence_penalty` once if it has. After the temperature, `min_p` removes tokens that are less likely
    than this share of the likeliest one, and then `top_k` and `top_p` follow. With `ignore_eos`, a candidate goes on
    after the tokens that end it otherwise.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int = 0
    response_format: str | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    @property
    def unmodified(self) -> bool:
        """Whether candidates are draws from the policy's own distribution at this temperature."""
        whole = self.top_p == 1 and self.top_k <= 0 and self.min_p == 0 and self.response_format is None
        return self.temperature > 0 and whole and not self.ignore_eos and not self.changes_logits

    @property
    def changes_logits(self) -> bool:
        """Whether a field other than the temperature and the limits on the support changes what is drawn from."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)
        return penalties or bool(self.logit_bias) or self.min_tokens > 0

    def shortened(self, max_tokens: int) -> "Sampling":
        """The same with at most `max_tokens` tokens for each candidate."""
        most = min(self.max_tokens, max_tokens)
        return replace(self, max_tokens=most, min_tokens=min(self.min_tokens, most))


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """Draw `n` completions of `prompt` from the loaded version named `version`.

    `deltas` asks for pieces as they are made; without it each candidate arrives as one delta when it is finished.
    Prompts of different `salt`s share no cache: how long one takes to read must not tell a tenant what another has
    asked.
    """

    prompt: Prompt
    version: str
    n: int = 1
    sampling: Sampling = Sampling()
    deltas: bool = False
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of every draw: the prompt as the policy reads it."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt's token ids, and each token as the tokenizer writes it in its vocabulary."""

    ids: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """What a token reads as.

    `utf8` is what it adds to the candidate's text, perhaps a part of a character only; None when it adds nothing,
    because it is a special token or ends the candidate. `text` is the same to be shown: bytes that make no character
    are written as `\\xe2`, and special tokens have their name.
    """

    text: str
    utf8: bytes | None

    @classmethod
    def of(cls, written: str | bytes) -> "Token":
        """The token that adds `written`."""
        utf8 = written.encode() if isinstance(written, str) else written
        return cls(utf8.decode(errors="backslashreplace"), utf8)


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """One of the likeliest tokens at a position, with its log-probability.

    `token_id` is None where the engine is told its text alone.
    """

    token_id: int | None
    token: Token
    logprob: float


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of candidate `index`.

    `token_ids` are exactly the tokens drawn, the end-of-sequence token included; `text` leaves special tokens and
    stop strings out and may lag behind the tokens (half a character, or the start of a stop string).
    `logprobs` are natural logarithms under the policy at the sampling temperature, before any other field of `Sampling`
    changes its distribution (at temperature 0: at temperature 1), one per token, as are `tokens` and `alternatives`
    (when the request asked for them). `finish_reason` is set on the candidate's last delta, and only there.
    Tokens that write a tool call are no part of `text`: what they call is in `tool_calls`.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    tokens: tuple[Token, ...] = ()
    alternatives: tuple[tuple[TokenAlternative, ...], ...] = ()
    finish_reason: FinishReason | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The log-probabilities that a version gives the tokens of a prompt, each after those before it.

    `tokens`, `logprobs` and `alternatives` have one entry for each token of `started`. They are natural logarithms
    at temperature 1. The first token has none (None), because nothing comes before it.
    """

    started: Started
    tokens: tuple[Token, ...]
    logprobs: tuple[float | None, ...]
    alternatives: tuple[tuple[TokenAlternative, ...], ...]


class VersionKind(StrEnum):
    """What a version's directory holds: the base model itself, a LoRA adapter on it, or full weights."""

    BASE = "base"
    ADAPTER = "adapter"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """What an engine needs to load a version. A name never means other files, so caches keyed by it cannot go stale."""

    name: str
    kind: VersionKind
    directory: Path


class Engine(Protocol):
    """Draws completions. Safe to call from many tasks of one event loop."""

    @property
    def base(self) -> str:
        """Name of the base version; it is always loaded, unless another one has displaced it."""
        ...

    async def start(self) -> None:
        """Load the base model, and see that it can be drawn from. Raises UserError when it cannot."""
        ...

    async def stop(self) -> None:
        """Abort what is running and free the model."""
        ...

    def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        """Yield `Started`, then the candidates' deltas, interleaved in any order.

        The prompt is processed once for all n.

        Closing the generator (or cancelling the task that reads it) aborts every candidate that is still running.

        Raises:
            PromptTooLong: prompt + max_tokens exceed the context; raised before `Started`.
            UnknownVersion: the version is not loaded; raised before `Started`.
            UserError: the request asks for what this engine cannot do, such as tools; raised before `Started`, but for
                a schema that turns out to be too complex while it is drawn with.
            EngineError: the engine failed.
        """
        ...

    async def prompt_logprobs(self, request: DrawRequest) -> PromptLogprobs:
        """The log-probabilities of the prompt's own tokens under the version; nothing is drawn.

        Of the sampling, only `top_logprobs` counts: how many alternatives to report for each token.

        Raises:
            PromptTooLong: the prompt exceeds the context.
            UnknownVersion: the version is not loaded.
            UserError: the prompt cannot be read, or this engine cannot tell.
            EngineError: the engine failed.
        """
        ...

    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool | None = None) -> Tokens:
        """The tokens of a prompt that is messages or text, as `draw` reads it.

        Args:
            add_special_tokens: whether to add the tokenizer's special tokens, such as the one that begins a sequence,
                to those that the text, or the chat template's text, has; None: as `draw` does.

        Raises:
            UserError: the prompt cannot be read.
            EngineError: the engine failed.
        """
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included. Raises UserError for a token that there is not."""
        ...

    def displaces(self, version: VersionFiles) -> frozenset[str]:
        """Versions that could not be drawn from once `version` is loaded, because there is one place for both.

        What is drawn from them while it is loaded fails: the caller lets that end first, and starts nothing.
        """
        return frozenset()

    async def load(self, version: VersionFiles) -> None:
        """Load a version beside those already served, but for those that it displaces. Idempotent.

        When it fails, what was loaded before still is. Raises UserError when it does not fit the base.
        """
        ...

    async def unload(self, name: str) -> None:
        """Forget a version; the caller has drained it. Unloading what is not loaded does nothing."""
        ...

    async def loaded(self) -> frozenset[str]:
        """Names of the versions that can be drawn from now, the base included."""
        ...

    async def check(self) -> None:
        """Raise EngineError, saying why, when the engine cannot draw."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens that prompt and completion may have together."""
        ...


def refuse_effort(prompt: Prompt) -> None:
    """For models whose chat template knows no reasoning_effort. Raises UserError when `prompt` asks for some."""
    if prompt.template_options.get("reasoning_effort", "none") != "none":
        raise UserError("the model's chat template knows no reasoning_effort: leave it out", param="reasoning_effort")


def refuse_tools(prompt: Prompt) -> None:
    """For engines that cannot call tools. Raises UserError when `prompt` brings any."""
    if prompt.has_tools:
        raise UserError(
            "this engine does not support tools: leave tools and tool messages out, or serve with another engine",
            param="tools",
        )
