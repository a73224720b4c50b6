"""The interface of engines, which sample completions of a prompt from a version of the policy."""

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
    """The sampling parameters of a request.

    With a `seed`, candidate i uses its own random generator seeded with (seed, i), so the same request gives the same
    candidates, up to the floating-point differences between batches. `temperature` 0 is greedy decoding. `top_p` 1 and
    `top_k` 0 do not restrict the distribution; other values change its support. `top_logprobs` is how many alternatives
    to report per token (0 for none).

    `response_format` constrains the text of every candidate: it is OpenAI's object in the form that
    `response_format.canonical` writes, or None for unconstrained text. It changes the support, too; it is applied after
    the changes to the logits below and before the temperature. An engine that does not support it raises UserError.

    The other fields have the meaning of vLLM's SamplingParams, and their defaults change nothing. Logits are changed in
    this order: `logit_bias` adds its (token id, bias) pairs; `min_tokens` excludes end tokens until the candidate has
    this many tokens; `repetition_penalty` divides the positive logits and multiplies the negative logits of tokens in
    the prompt and the candidate; `frequency_penalty` is subtracted once for each occurrence of a token in the
    candidate, and `presence_penalty` once if it occurs at all. After the temperature, `min_p` removes tokens whose
    probability is below this share of the most likely token's; then `top_k` and `top_p` follow. With `ignore_eos`, a
    candidate continues after an end token.
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
        """Returns whether candidates are samples from the policy's own distribution at this temperature."""
        whole = self.top_p == 1 and self.top_k <= 0 and self.min_p == 0 and self.response_format is None
        return self.temperature > 0 and whole and not self.ignore_eos and not self.changes_logits

    @property
    def changes_logits(self) -> bool:
        """Returns whether any field changes the distribution, besides the temperature and the limits of the support."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)
        return penalties or bool(self.logit_bias) or self.min_tokens > 0

    def shortened(self, max_tokens: int) -> "Sampling":
        """Returns the same parameters with at most `max_tokens` tokens per candidate."""
        limit = min(self.max_tokens, max_tokens)
        return replace(self, max_tokens=limit, min_tokens=min(self.min_tokens, limit))


@dataclass(frozen=True, slots=True)
class DrawRequest:
    """A request for `n` completions of `prompt` from the loaded version named `version`.

    With `deltas`, the engine yields pieces as they are sampled; otherwise each candidate arrives as one delta when it
    is finished. Prompts with different `salt`s share no cache, so that the time a prompt takes does not reveal to one
    tenant what another has sent.
    """

    prompt: Prompt
    version: str
    n: int = 1
    sampling: Sampling = Sampling()
    deltas: bool = False
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of every request: the prompt as the policy reads it."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt's token ids, and each token as the tokenizer writes it in its vocabulary."""

    ids: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Token:
    r"""The text of a token.

    `utf8` is what the token adds to the candidate's text, which may be only a part of a character; it is None when the
    token adds nothing, because it is a special token or ends the candidate. `text` is the same for display: bytes that
    form no character are written as `\\xe2`, and special tokens appear by name.
    """

    text: str
    utf8: bytes | None

    @classmethod
    def of(cls, written: str | bytes) -> "Token":
        """Returns the token that adds `written` to a text."""
        utf8 = written.encode() if isinstance(written, str) else written
        return cls(utf8.decode(errors="backslashreplace"), utf8)


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """One of the most likely tokens at a position, with its log-probability.

    `token_id` is None where the engine gets only the token's text.
    """

    token_id: int | None
    token: Token
    logprob: float


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of candidate `index`.

    `token_ids` are exactly the sampled tokens, including the end-of-sequence token. `text` leaves out special tokens
    and stop strings, and may lag behind the tokens by half a character or the start of a stop string. `logprobs` are
    natural logarithms under the policy at the sampling temperature, before any other field of `Sampling` changes its
    distribution (at temperature 0: under the policy at temperature 1). There is one per token, and one entry of
    `tokens` and, when the request asked for them, of `alternatives`. `finish_reason` is set only on the candidate's
    last delta. Tokens that write a tool call are not part of `text`; the calls are in `tool_calls`.
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
    """The log-probability of each token of a prompt under a version, given the tokens before it.

    `tokens`, `logprobs` and `alternatives` have one entry for each token of `started`. Log-probabilities are natural
    logarithms at temperature 1. The first token has None, because nothing precedes it.
    """

    started: Started
    tokens: tuple[Token, ...]
    logprobs: tuple[float | None, ...]
    alternatives: tuple[tuple[TokenAlternative, ...], ...]


class VersionKind(StrEnum):
    """What a version's directory contains: the base model itself, a LoRA adapter for it, or full weights."""

    BASE = "base"
    ADAPTER = "adapter"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """The files of a version for an engine to load.

    A name always means the same files, so caches keyed by it never go stale.
    """

    name: str
    kind: VersionKind
    directory: Path


class Engine(Protocol):
    """Samples completions. Safe to call from many tasks of one event loop."""

    @property
    def base(self) -> str:
        """Returns the name of the base version, which is always loaded unless another version has displaced it."""
        ...

    async def start(self) -> None:
        """Loads the base model and checks that it can be sampled from. Raises UserError when it cannot."""
        ...

    async def stop(self) -> None:
        """Aborts all running requests and frees the model."""
        ...

    def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        """Yields `Started`, then the candidates' deltas, interleaved in any order.

        The prompt is processed once for all n candidates. Closing the generator, or cancelling the task that reads it,
        aborts every candidate that is still running.

        Raises:
            PromptTooLong: Prompt and max_tokens exceed the context; raised before `Started`.
            UnknownVersion: The version is not loaded; raised before `Started`.
            UserError: The request needs a feature that this engine lacks, such as tools. Raised before `Started`,
                except for a schema that proves too complex during sampling.
            EngineError: The engine failed.
        """
        ...

    async def prompt_logprobs(self, request: DrawRequest) -> PromptLogprobs:
        """Returns the log-probabilities of the prompt's own tokens under the version, without sampling.

        Of the sampling parameters, only `top_logprobs` applies: how many alternatives to report for each token.

        Raises:
            PromptTooLong: The prompt exceeds the context.
            UnknownVersion: The version is not loaded.
            UserError: The prompt cannot be read, or this engine does not report log-probabilities of prompts.
            EngineError: The engine failed.
        """
        ...

    async def tokenize(self, prompt: Prompt, *, add_special_tokens: bool | None = None) -> Tokens:
        """Returns the tokens of a prompt of messages or text, as `draw` reads it.

        Args:
            add_special_tokens: Whether to add the tokenizer's special tokens, such as the beginning-of-sequence token,
                to those already in the text or in the rendered chat. None means the default of `draw`.

        Raises:
            UserError: The prompt cannot be read.
            EngineError: The engine failed.
        """
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Returns the text of tokens, including special tokens. Raises UserError for an unknown token id."""
        ...

    def displaces(self, version: VersionFiles) -> frozenset[str]:
        """Returns the versions that loading `version` would unload, because the engine can hold only one of them.

        Requests that sample from them during the load fail, so the caller first lets those requests end and starts no
        others.
        """
        return frozenset()

    def unadaptable_layers(self) -> frozenset[str]:
        """Returns the names of the base's layers on which the engine cannot serve adapters, where it knows any.

        The engine need not be started. The call may import a heavy library.
        """
        return frozenset()

    def adapts_output_layer(self) -> bool:
        """Returns whether the engine serves adapters on the output layer of every base, in all of its calls."""
        return False

    async def load(self, version: VersionFiles) -> None:
        """Loads a version beside those already loaded, except for those that it displaces. Idempotent.

        When loading fails, all versions that were loaded before still are. Raises UserError when the version does not
        fit the base.
        """
        ...

    async def unload(self, name: str) -> None:
        """Unloads a version that no request uses any more. Does nothing when the version is not loaded."""
        ...

    async def loaded(self) -> frozenset[str]:
        """Returns the names of the versions that can be sampled from now, including the base."""
        ...

    async def check(self) -> None:
        """Raises EngineError with the cause when the engine cannot sample."""
        ...

    @property
    def context_length(self) -> int:
        """Returns the maximum number of tokens of prompt and completion together."""
        ...


def refuse_effort(prompt: Prompt) -> None:
    """Raises UserError when `prompt` sets a reasoning effort; for models whose chat template does not support it."""
    if prompt.template_options.get("reasoning_effort", "none") != "none":
        raise UserError(
            "the model's chat template does not support reasoning_effort: leave it out", param="reasoning_effort"
        )


def refuse_tools(prompt: Prompt) -> None:
    """Raises UserError when `prompt` has tools; for engines that do not support tool calls."""
    if prompt.has_tools:
        raise UserError(
            "this engine does not support tools: remove tools, and calls and their results from messages, or choose "
            "another engine",
            param="tools",
        )
