"""Response bodies, as /docs shows them. The hot path writes its own without going through these."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class PromptTokensDetails(Reply):
    cached_tokens: Literal[0]
    """Always 0: every token of a prompt is counted, whatever an engine's cache saves."""


class Usage(Reply):
    """Tokens of the prompts and of the returned choices; what was drawn besides is in the `bonbon` object."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CandidateReply(Reply):
    """One draw, returned or not."""

    index: int
    text: str
    reward: float | None
    rank: int | None
    """1 is the worst, n the best."""
    win_probability: float | None
    """Expected chance to beat a fresh draw, from the rank."""
    finish_reason: Literal["stop", "length", "abort"]
    tokens: int


class GroupReply(Reply):
    """What best-of-n did. Lists have one entry per choice, in order."""

    chosen: list[int]
    """Which candidate each choice is: what feedback calls `chosen`."""
    rewards: list[float | None]
    """null where nothing was scored: a single draw, or a degraded answer."""
    win_probabilities: list[float | None]
    tokens_drawn: int
    """Completion tokens of all candidates."""
    group_id: str | None
    """What feedback refers to; null when nothing was logged, and over several prompts."""
    degraded: bool
    """The reward gave no ranking: the choices are the first candidates."""
    degraded_reason: str | None
    """What that means; the service's log says what failed."""
    candidates: list[CandidateReply] | None = None
    """All of them, when asked for."""


class ExtensionReply(GroupReply):
    """The same, over all prompts of the request."""

    version: str
    """The version that was drawn from."""
    n: int
    """Candidates drawn per prompt."""
    groups: list[GroupReply] | None = None
    """One for each prompt, when there were several."""


class TopLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    content: list[TokenLogprob] | None
    refusal: None


class FunctionReply(Reply):
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


class ToolCallReply(Reply):
    id: str
    type: Literal["function"]
    function: FunctionReply


class ChatMessageReply(Reply):
    role: Literal["assistant"]
    content: str | None
    """null where there are only tool calls."""
    refusal: None
    tool_calls: list[ToolCallReply] | None = None


class ChatChoice(Reply):
    index: int
    message: ChatMessageReply
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class Head(Reply):
    id: str
    created: int
    model: str
    """The name that was asked for."""
    system_fingerprint: None


class ChatCompletion(Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    bonbon: ExtensionReply


class FunctionPiece(Reply):
    name: str | None = None
    arguments: str


class ToolCallPiece(Reply):
    """The next piece of a call; the first has its id and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionPiece


class ChatDelta(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChatChunkChoice(Reply):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(Head):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    bonbon: ExtensionReply | None = None
    """In the last chunk that has a choice."""


class CompletionLogprobs(Reply):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Head):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage
    bonbon: ExtensionReply


class CompletionChunkChoice(CompletionChoice):
    finish_reason: Literal["stop", "length"] | None  # type: ignore[assignment]


class CompletionChunk(Head):
    """One event of a stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
    bonbon: ExtensionReply | None = None


class ModelExtension(Reply):
    version: str
    """The version that this name means now."""
    parent: str | None


class Model(Reply):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "bonbon"
    max_model_len: int
    """Most tokens that prompt and completion may have together."""
    bonbon: ModelExtension


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[Model]


class FeedbackReply(Reply):
    object: Literal["feedback"] = "feedback"
    group_id: str
    created: int


class Deleted(Reply):
    """What a deletion did."""

    deleted: int
    """Groups, with their candidates, comparisons and feedback."""
    trained: list[str]
    """Versions that were trained on some of them."""
    descended: list[str]
    """Versions that were trained from those."""


class ErrorReply(Reply):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    """The field at fault, such as `messages[0].content`."""
    code: str | None


class ErrorEnvelope(Reply):
    error: ErrorReply
