"""The body of a request for a chat completion."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from bonbon.errors import UserError
from bonbon.prompt import Prompt
from service.answering.completion_request import CompletionRequest
from service.schemas.message import Messages
from service.schemas.request_body import AnswerBody, Identifier
from service.schemas.response_format import ResponseFormat
from service.schemas.template import TemplateBody
from service.schemas.tools import NamedTool, ToolChoice, Tools, check_choice
from service.schemas.without_effect import WHOLE, Ignored, Neutral


class ChatBody(AnswerBody, TemplateBody):
    """The body of `POST /v1/chat/completions`."""

    messages: Messages
    tools: Tools | None = None
    """Functions that the answer may call. The engine must support tool calls."""
    tool_choice: ToolChoice | None = None
    """auto by default. What forces a call constrains the sampler, so such groups are never trained on."""
    parallel_tool_calls: bool | None = None
    """With false, an answer contains only its first call. With true, the default, the model decides how many calls it
    makes."""
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    """Number of most likely tokens to report at each position; needs logprobs."""
    response_format: ResponseFormat | None = None
    """The format of every candidate. Such groups are never trained on."""
    safety_identifier: Identifier | None = None
    """The newer name of user."""
    reasoning_effort: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """How long the model thinks. Any value but `none` is refused if the model's chat template does not support it."""
    add_special_tokens: Annotated[None, Neutral(False)] = None
    audio: Annotated[None, Neutral()] = None
    echo: Annotated[None, Neutral(False)] = None
    function_call: Annotated[None, Neutral("none")] = None
    functions: Annotated[None, Neutral([])] = None
    include_reasoning: Annotated[None, Neutral(True)] = None
    modalities: Annotated[None, Neutral(["text"])] = None
    service_tier: Annotated[None, Neutral("auto", "default")] = None
    verbosity: Annotated[None, Neutral("medium")] = None
    web_search_options: Annotated[None, Neutral()] = None
    prediction: Ignored = None

    @model_validator(mode="after")
    def _check_pairs(self) -> "ChatBody":
        if self.top_logprobs and not self.logprobs:
            raise UserError("top_logprobs needs logprobs set to true", param="top_logprobs")
        self._check_same("max_tokens", "max_completion_tokens")
        self._check_same("user", "safety_identifier")
        check_choice(
            {tool.function.name for tool in self.tools or ()},
            self.tool_choice,
            chosen=self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None,
        )
        return self

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def prompt(self) -> Prompt:
        """The messages, tools and chat template options of this body, as a prompt."""
        choice = self.tool_choice if isinstance(self.tool_choice, str | None) else self.tool_choice.model_dump()
        return self.chat_prompt(
            self.messages, tools=self.tools or (), tool_choice=choice or "auto", reasoning_effort=self.reasoning_effort
        )

    @property
    def field_names(self) -> Mapping[str, str]:
        return {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}

    def completion_request(
        self, *, default_max_tokens: int, tenant: str, request_id: str, headers: Mapping[str, str]
    ) -> CompletionRequest:
        return self._completion_request(
            (self.prompt,),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            default_max_tokens=default_max_tokens,
            top_logprobs=self.top_logprobs or 0,
            response_format=self.response_format.canonical if self.response_format else None,
            user=self.user or self.safety_identifier or "",
            tenant=tenant,
            request_id=request_id,
            headers=headers,
        )
