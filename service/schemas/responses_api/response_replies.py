"""Bodies and events of `/v1/responses`, as /docs shows them. The hot path writes its own without these."""

from typing import Any, Literal

from pydantic import RootModel

from service.schemas.replies import ExtensionReply, Reply, TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class ResponseLogprob(TokenLogprob):
    bytes: list[int]
    """Empty for a token that adds nothing to the text."""


class OutputText(Reply):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ResponseLogprob]


class OutputMessage(Reply):
    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Reply):
    type: Literal["function_call"]
    id: str
    call_id: str
    """What the output of this call refers to."""
    name: str
    arguments: str
    """JSON text, as the model wrote it."""
    status: Status


class InputTokensDetails(Reply):
    cached_tokens: Literal[0]
    cache_write_tokens: Literal[0]


class OutputTokensDetails(Reply):
    reasoning_tokens: Literal[0]


class ResponseUsage(Reply):
    """Tokens of the prompt and of the returned answer; what was drawn besides is in the `bonbon` object."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Reply):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(Reply):
    reason: Literal["max_output_tokens"]


class ReasoningReply(Reply):
    effort: str | None
    summary: None


class ResponseReply(Reply):
    """A response. It is not stored, and repeats what its request asked for."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    """Of a stream that failed."""
    incomplete_details: IncompleteDetails | None
    model: str
    """The name that was asked for."""
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage | None
    """null until the answer is there."""
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: ReasoningReply
    background: Literal[False]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None
    bonbon: ExtensionReply | None = None
    """When the answer is there."""


class NumberedEvent(Reply):
    sequence_number: int
    """Counts from 0."""


class WholeEvent(NumberedEvent):
    """The response begins, or ends."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: ResponseReply


class ItemEvent(NumberedEvent):
    """An item begins, or is whole."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputMessage | OutputCall


class PartEvent(NumberedEvent):
    """The content of a message begins, or is whole."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    output_index: int
    item_id: str
    content_index: Literal[0]
    part: OutputText


class TextDelta(NumberedEvent):
    """The next piece of a message's text."""

    type: Literal["response.output_text.delta"]
    output_index: int
    item_id: str
    content_index: Literal[0]
    delta: str
    logprobs: list[ResponseLogprob]


class TextDone(NumberedEvent):
    """A message's text is whole."""

    type: Literal["response.output_text.done"]
    output_index: int
    item_id: str
    content_index: Literal[0]
    text: str
    logprobs: list[ResponseLogprob]


class ArgumentsDelta(NumberedEvent):
    """The next piece of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    output_index: int
    item_id: str
    delta: str


class ArgumentsDone(NumberedEvent):
    """A call's arguments are whole."""

    type: Literal["response.function_call_arguments.done"]
    output_index: int
    item_id: str
    name: str
    arguments: str


class ResponseEvent(
    RootModel[WholeEvent | ItemEvent | PartEvent | TextDelta | TextDone | ArgumentsDelta | ArgumentsDone]
):
    """One event of a stream; its name is its type."""
