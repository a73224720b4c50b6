"""The body of a request for a text completion."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from bonbon.errors import UserError
from bonbon.prompt import Prompt
from service.answering.completion_request import CompletionRequest
from service.schemas.prompts import PromptList
from service.schemas.request_body import AnswerBody
from service.schemas.without_effect import WHOLE, Neutral


class CompletionBody(AnswerBody):
    """The body of `POST /v1/completions`."""

    prompt: PromptList
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    """Number of most likely tokens to report at each position, besides the sampled one."""
    max_tokens: Annotated[int, Field(ge=0), WHOLE] | None = None
    """As in chat completions. With `echo`, 0 generates nothing."""
    echo: bool | None = None
    """Whether to put the prompt before each choice's text and, with `logprobs`, its tokens before the choice's
    tokens."""
    add_special_tokens: Annotated[None, Neutral(True)] = None
    suffix: Annotated[None, Neutral("")] = None

    @model_validator(mode="after")
    def _check_echo(self) -> "CompletionBody":
        if self.max_tokens == 0 and not self.echo:
            raise UserError("max_tokens 0 generates nothing, so it needs echo set to true", param="max_tokens")
        if self.echo and self.logprobs is not None and (self.n or 1) > 1:
            raise UserError(
                "echo with logprobs reports each prompt once, with one choice: set n to 1, or leave one of them out",
                param="n",
            )
        return self

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    def completion_request(
        self, *, default_max_tokens: int, tenant: str, request_id: str, headers: Mapping[str, str]
    ) -> CompletionRequest:
        prompts: tuple[Prompt, ...] = self.prompt
        return self._completion_request(
            prompts,
            max_tokens=self.max_tokens,
            default_max_tokens=default_max_tokens,
            top_logprobs=self.logprobs or 0,
            prompt_logprobs=bool(self.echo) and (self.logprobs is not None or self.max_tokens == 0),
            user=self.user or "",
            tenant=tenant,
            request_id=request_id,
            headers=headers,
        )
