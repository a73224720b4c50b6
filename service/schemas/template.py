"""The options of the model's chat template in a request for a chat."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, model_validator
from pydantic_core import PydanticCustomError

from bonbon.errors import UserError
from bonbon.prompt import Prompt
from bonbon.tools import canonical
from service.schemas.message import ChatMessage
from service.schemas.plain_json import check_plain
from service.schemas.request_body import Body
from service.schemas.tools import Tool
from service.schemas.without_effect import asking_nothing

FIELDS = frozenset({"add_generation_prompt", "continue_final_message"})
"""The template options that have their own fields in a request."""


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    if fields := sorted(options.keys() & FIELDS):
        raise PydanticCustomError("template_field", "{name} is a field of its own", {"name": fields[0]})
    return check_plain(options)


TemplateOptions = Annotated[dict[str, Any], AfterValidator(_check_options)]


class TemplateBody(Body):
    """Options of the chat template."""

    add_generation_prompt: bool | None = None
    """With true, the default, the prompt ends with the beginning of an assistant's message."""
    continue_final_message: Annotated[bool | None, asking_nothing(False)] = None
    """With true, the answer continues the assistant's final message instead of beginning a new one."""
    chat_template_kwargs: Annotated[TemplateOptions | None, asking_nothing({})] = None
    """Further variables for the chat template, such as `enable_thinking`. A template ignores variables that it does not
    use."""

    @model_validator(mode="after")
    def _check_end(self) -> "TemplateBody":
        if self.continue_final_message and self.add_generation_prompt:
            raise UserError(
                "continue_final_message and add_generation_prompt exclude each other: leave one of them out",
                param="continue_final_message",
            )
        return self

    def chat_prompt(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: Any = "auto",
        reasoning_effort: str | None = None,
    ) -> Prompt:
        """`messages` and `tools` with what this body says of them.

        What means the default is left out, because it changes no digest.

        Raises UserError when the final message cannot be continued.
        """
        options = dict(self.chat_template_kwargs or {})
        if reasoning_effort is not None:
            if options.get("reasoning_effort", reasoning_effort) != reasoning_effort:
                raise UserError(
                    "reasoning_effort and chat_template_kwargs.reasoning_effort differ: leave one of them out",
                    param="reasoning_effort",
                )
            options["reasoning_effort"] = reasoning_effort
        if self.continue_final_message:
            if messages[-1].role != "assistant" or messages[-1].tool_calls:
                raise UserError(
                    "continue_final_message needs a final message to continue that is an assistant's text: add one, or "
                    "leave continue_final_message out",
                    param="continue_final_message",
                )
            options["continue_final_message"] = True
            options["add_generation_prompt"] = False
        elif self.add_generation_prompt is False:
            options["add_generation_prompt"] = False
        offered = [tool.model_dump(exclude_none=True) for tool in tools]
        return Prompt(
            messages=tuple(message.to_message() for message in messages),
            tools=canonical(offered) if offered else None,
            tool_choice=canonical(tool_choice) if offered else None,
            template=canonical(options) if options else None,
        )
