"""Bodies of `/tokenize` and `/detokenize`, as vLLM's servers have them."""

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
    """POST /tokenize: a prompt or messages."""

    model: str | None = None
    """Any model's name: all versions of a model read prompts alike."""
    prompt: Text | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    """Functions that the model is told it may call; only an engine that calls tools takes any."""
    add_special_tokens: bool | None = None
    """Add the tokenizer's special tokens: by default to a prompt, and not to messages, whose template writes them."""
    return_token_strs: bool | None = None
    """Return each token as the tokenizer's vocabulary has it, too."""
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
        """What is to be read."""
        if self.messages is None:
            return Prompt(text=self.prompt)
        return self.chat_prompt(self.messages, tools=self.tools or ())


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=INT32)]], Field(fail_fast=True)]


class Tokenized(BaseModel):
    """How the model reads a prompt."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    count: int
    """How many tokens there are."""
    max_model_len: int
    """Most tokens that prompt and completion may have together."""
    tokens: list[int]
    token_strs: list[str] | None = None
    """When they were asked for."""


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: str
