"""Response bodies as documented under /docs. The service writes its responses without these classes, for speed."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class PromptTokensDetails(Reply):
    cached_tokens: Literal[0]
    """Always 0: every token of a prompt is counted, whatever the engine's cache saves."""


class Usage(Reply):
    """Tokens of the prompts and of the returned choices. The `bonbon` object counts the tokens of all candidates."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CandidateReply(Reply):
    """One candidate, returned or not."""

    index: int
    text: str
    reward: float | None
    rank: int | None
    """1 is the worst candidate, n the best."""
    win_probability: float | None
    """Expected probability that the candidate beats a new one, estimated from its rank."""
    finish_reason: Literal["stop", "length", "abort"]
    tokens: int


class GroupReply(Reply):
    """The result of best-of-n. Lists have one entry per choice, in order."""

    chosen: list[int]
    """Index of the candidate behind each choice, as feedback uses it in `chosen`."""
    rewards: list[float | None]
    """null if the candidates were not scored: for a single candidate, or a degraded answer."""
    win_probabilities: list[float | None]
    tokens_drawn: int
    """Completion tokens of all candidates."""
    group_id: str | None
    """The id to use in feedback; null if nothing was logged, or if there are several prompts."""
    degraded: bool
    """Whether the reward could not rank the candidates, so that the first ones are the choices."""
    degraded_reason: str | None
    """Explanation of a degraded answer; the service's log has the details."""
    candidates: list[CandidateReply] | None = None
    """All candidates, if the request asked for them."""


class ExtensionReply(GroupReply):
    """The result of best-of-n over all prompts of the request."""

    version: str
    """The version that generated the candidates."""
    n: int
    """Candidates sampled per prompt."""
    groups: list[GroupReply] | None = None
    """One entry per prompt, if there were several."""


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
    """JSON text as the model wrote it."""


class ToolCallReply(Reply):
    id: str
    type: Literal["function"]
    function: FunctionReply


class ChatMessageReply(Reply):
    role: Literal["assistant"]
    content: str | None
    """null if there are only tool calls."""
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
    """The model name in the request."""
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
    """The next piece of a tool call; the first piece has its id and name."""

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
    """Set in the last chunk that has a choice."""


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
    """The version to which this name refers now."""
    parent: str | None


class Model(Reply):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "bonbon"
    root: str
    """The version behind the name, for clients of vLLM. It is no path, because files of a server are its own affair."""
    max_model_len: int
    """Maximum number of tokens in prompt and completion together."""
    bonbon: ModelExtension


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[Model]


class FeedbackReply(Reply):
    object: Literal["feedback"] = "feedback"
    group_id: str
    created: int


class Deleted(Reply):
    """The result of a deletion."""

    deleted: int
    """Deleted groups, with their candidates, comparisons and feedback."""
    trained: list[str]
    """Versions that were trained on some of these groups."""
    descended: list[str]
    """Versions that were derived from those versions."""


class ErrorReply(Reply):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    """The invalid field, such as `messages[0].content`."""
    code: str | None


class ErrorEnvelope(Reply):
    error: ErrorReply
