"""The body of a request for a response."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from bonbon.errors import UserError
from bonbon.prompt import Prompt
from service.answering.completion_request import CompletionRequest
from service.schemas.prompts import Text
from service.schemas.request_body import AnswerBody, Body, Identifier
from service.schemas.responses_api.response_input import Input, messages_of
from service.schemas.responses_api.response_text import TextOptions
from service.schemas.responses_api.response_tools import FunctionToolChoice, FunctionTools, NamedFunctionTool
from service.schemas.template import TemplateBody
from service.schemas.tools import check_choice
from service.schemas.without_effect import WHOLE, Ignored, Neutral

LOGPROBS, ENCRYPTED_REASONING = "message.output_text.logprobs", "reasoning.encrypted_content"
NOT_STORED = "responses are not stored here: leave this field out, and send the whole conversation as input"


def _includable(value: Any) -> Any:
    if value not in (LOGPROBS, ENCRYPTED_REASONING):
        raise PydanticCustomError(
            "unsupported",
            "{value} cannot be included here, but {known} can",
            {
                "value": repr(value[:40]) if isinstance(value, str) else "a value that is not a string",
                "known": LOGPROBS,
            },
        )
    return value


def _not_stored(value: Any) -> Any:
    if value is True:
        raise PydanticCustomError(
            "unsupported", "responses are not stored here, and cannot be retrieved: leave store out, or set it to false"
        )
    return value


Includable = Annotated[
    Literal["message.output_text.logprobs", "reasoning.encrypted_content"], BeforeValidator(_includable)
]


class ReasoningOptions(Body):
    effort: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """How long the model thinks. Any value but `none` is refused if the model's chat template does not support it."""
    context: Annotated[None, Neutral("auto")] = None
    generate_summary: Annotated[None, Neutral("auto")] = None
    mode: Annotated[None, Neutral("standard")] = None
    summary: Annotated[None, Neutral("auto")] = None


class ResponseBody(AnswerBody, TemplateBody):
    """POST /v1/responses. What bonbon takes beyond OpenAI's fields is what it takes in a chat."""

    input: Input
    """A user's message, or a list of messages, function calls and their outputs."""
    instructions: Text | None = None
    """A system message that precedes the input."""
    tools: FunctionTools | None = None
    """Functions that the answer may call. The engine must support tool calls."""
    tool_choice: FunctionToolChoice | None = None
    """auto by default. What forces a call constrains the sampler, so such groups are never trained on."""
    parallel_tool_calls: bool | None = None
    """With false, an answer contains only its first call. With true, the default, the model decides how many calls it
    makes."""
    max_output_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    """Most tokens per candidate. Without it: the service's default, or less where the context has less room."""
    text: TextOptions = TextOptions()
    """The format of every candidate. Such groups are never trained on. Not every engine supports formats."""
    reasoning: ReasoningOptions = ReasoningOptions()
    include: Annotated[list[Includable], Field(max_length=16, fail_fast=True)] | None = None
    """`message.output_text.logprobs`. `reasoning.encrypted_content` is accepted and changes nothing: an answer has no
    reasoning apart from its text."""
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    """Number of most likely tokens to report at each position; needs `message.output_text.logprobs` in include."""
    safety_identifier: Identifier | None = None
    """The newer name of user."""
    store: Annotated[bool | None, BeforeValidator(_not_stored)] = None
    """With false, nothing of this request is logged. True is refused, because no response can be retrieved later."""
    access_programs: Annotated[None, Neutral()] = None
    background: Annotated[None, Neutral(False)] = None
    background_options: Annotated[None, Neutral({})] = None
    context_management: Annotated[None, Neutral([])] = None
    conversation: Annotated[None, Neutral(why=NOT_STORED)] = None
    max_tokens: Annotated[None, Neutral(why="this field is called max_output_tokens here")] = None
    n: Annotated[None, Neutral(1)] = None
    previous_response_id: Annotated[None, Neutral(why=NOT_STORED)] = None
    prompt: Annotated[None, Neutral(why="prompts are not stored here: send instructions and input instead")] = None
    service_tier: Annotated[None, Neutral("auto", "default")] = None
    truncation: Annotated[None, Neutral("disabled")] = None
    image: Ignored = None
    max_tool_calls: Ignored = None

    @model_validator(mode="after")
    def _check_pairs(self) -> "ResponseBody":
        if self.top_logprobs and not self.wants_logprobs:
            raise UserError(f"top_logprobs needs {LOGPROBS} in include", param="top_logprobs")
        self._check_same("user", "safety_identifier")
        check_choice(
            {tool.name for tool in self.tools or ()},
            self.tool_choice,
            chosen=self.tool_choice.name if isinstance(self.tool_choice, NamedFunctionTool) else None,
        )
        return self

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def field_names(self) -> Mapping[str, str]:
        return {
            "logprobs": "include",
            "max_completion_tokens": "max_output_tokens",
            "max_tokens": "max_output_tokens",
            "messages": "input",
            "reasoning_effort": "reasoning.effort",
            "response_format": "text.format",
            "response_format.json_schema": "text.format",
            "tool_choice.function": "tool_choice",
            "tools[].function": "tools[]",
        }

    @property
    def chat(self) -> Prompt:
        """The chat of this body, with its tools and chat template options. Raises UserError."""
        messages = messages_of(self.input, self.instructions)
        if not messages:
            raise UserError("the input has reasoning only: add a message", param="input")
        choice: Any = self.tool_choice
        if choice is not None and not isinstance(choice, str):
            choice = {"type": "function", "function": {"name": choice.name}}
        return self.chat_prompt(
            messages,
            tools=[tool.tool for tool in self.tools or ()],
            tool_choice=choice or "auto",
            reasoning_effort=self.reasoning.effort,
        )

    def completion_request(
        self, *, default_max_tokens: int, tenant: str, request_id: str, headers: Mapping[str, str]
    ) -> CompletionRequest:
        return self._completion_request(
            (self.chat,),
            max_tokens=self.max_output_tokens,
            default_max_tokens=default_max_tokens,
            top_logprobs=self.top_logprobs or 0,
            response_format=self.text.format.response_format.canonical if self.text.format else None,
            user=self.user or self.safety_identifier or "",
            tenant=tenant,
            request_id=request_id,
            headers=headers,
        )

    @property
    def echo(self) -> dict[str, Any]:
        """The fields that the response repeats from its request, with defaults for those that were left out."""
        choice = self.tool_choice or "auto"
        shape = self.text.format
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "reasoning": {"effort": self.reasoning.effort, "summary": None},
            "safety_identifier": self.safety_identifier,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": {"type": "text"} if shape is None else shape.model_dump(exclude_none=True)},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.echo for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "user": self.user,
        }
