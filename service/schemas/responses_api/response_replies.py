"""Response bodies and events of `/v1/responses` as documented under /docs.

The service writes its responses without these classes, for speed.
"""

from typing import Any, Literal

from pydantic import RootModel

from service.schemas.replies import ExtensionReply, Reply, TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class ResponseLogprob(TokenLogprob):
    bytes: list[int]
    """The token's bytes; empty for a token that adds nothing to the text."""


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
    """The id that the output of this call refers to."""
    name: str
    arguments: str
    """The arguments as JSON text, as the model wrote it."""
    status: Status


class InputTokensDetails(Reply):
    cached_tokens: Literal[0]
    cache_write_tokens: Literal[0]


class OutputTokensDetails(Reply):
    reasoning_tokens: Literal[0]


class ResponseUsage(Reply):
    """Tokens of the prompt and of the returned answer. The `bonbon` object counts the tokens of all candidates."""

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
    """A response. It is not stored, and it repeats the fields of its request."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    """The error of a stream that failed."""
    incomplete_details: IncompleteDetails | None
    model: str
    """The model name in the request."""
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage | None
    """null until the answer is complete."""
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
    """Sent when the answer is complete."""


class NumberedEvent(Reply):
    sequence_number: int
    """Counts from 0."""


class WholeEvent(NumberedEvent):
    """Sent when the response begins or ends."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: ResponseReply


class ItemEvent(NumberedEvent):
    """Sent when an item begins or is complete."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputMessage | OutputCall


class PartEvent(NumberedEvent):
    """Sent when the content of a message begins or is complete."""

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
    """Sent when a message's text is complete."""

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
    """Sent when the arguments of a call are complete."""

    type: Literal["response.function_call_arguments.done"]
    output_index: int
    item_id: str
    name: str
    arguments: str


class ResponseEvent(
    RootModel[WholeEvent | ItemEvent | PartEvent | TextDelta | TextDone | ArgumentsDelta | ArgumentsDone]
):
    """One event of a stream; its name is its type."""
