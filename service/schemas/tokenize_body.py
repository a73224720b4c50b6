"""The bodies of `/tokenize` and `/detokenize`, which are those of vLLM's servers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bonbon.errors import UserError
from bonbon.prompt import Prompt
from service.schemas.message import Messages
from service.schemas.prompts import Text
from service.schemas.request_body import INT32, Body
from service.schemas.template import TemplateBody
from service.schemas.tools import Tools
from service.schemas.without_effect import Neutral


class TokenizeBody(TemplateBody):
    """The body of `POST /tokenize`: a prompt or messages."""

    model: str | None = None
    """The name of any model, because all versions of a model tokenize prompts alike."""
    prompt: Text | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    """Functions that the model may call. The engine must support tool calls."""
    add_special_tokens: bool | None = None
    """Add the tokenizer's special tokens: by default to a prompt, and not to messages, whose template writes them."""
    return_token_strs: bool | None = None
    """Whether to return each token as a string of the tokenizer's vocabulary as well."""
    chat_template: Annotated[None, Neutral()] = None
    media_io_kwargs: Annotated[None, Neutral({})] = None
    mm_processor_kwargs: Annotated[None, Neutral({})] = None

    @model_validator(mode="after")
    def _check_one(self) -> "TokenizeBody":
        if (self.prompt is None) == (self.messages is None):
            raise UserError("give a prompt or messages: exactly one of them", param="prompt")
        return self

    @property
    def read(self) -> Prompt:
        """The prompt of this body."""
        if self.messages is None:
            return Prompt(text=self.prompt)
        return self.chat_prompt(self.messages, tools=self.tools or ())


class DetokenizeBody(Body):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=INT32)]], Field(fail_fast=True)]


class Tokenized(BaseModel):
    """The tokens of a prompt."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    count: int
    """The number of tokens."""
    max_model_len: int
    """Maximum number of tokens in prompt and completion together."""
    tokens: list[int]
    token_strs: list[str] | None = None
    """The tokens as strings, if the request asked for them."""


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: str
