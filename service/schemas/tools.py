"""Tools in a request for a chat: the offered functions, the choice among them, and earlier calls."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, StringConstraints, Tag

from bonbon.errors import UserError
from service.schemas.plain_json import PlainObject
from service.schemas.prompts import Text
from service.schemas.request_body import Body
from service.schemas.without_effect import Ignored

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Body):
    """A function that may be called."""

    name: FunctionName
    description: Text | None = None
    parameters: PlainObject | None = None
    """The JSON Schema of the arguments."""
    strict: bool | None = None
    """With true, arguments always conform to the schema. Such groups are never trained on."""
    cache_control: Ignored = None


class Tool(Body):
    type: Literal["function"]
    function: Function
    cache_control: Ignored = None


class NamedFunction(Body):
    name: FunctionName


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Body):
    model_config = ConfigDict(extra="ignore")

    name: FunctionName
    arguments: str


class Call(Body):
    """A call as an assistant's message has it. What providers add to calls never reaches the model."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


Tools = Annotated[list[Tool], Field(max_length=128, fail_fast=True)]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")] | Annotated[NamedTool, Tag("tool")],
    # An object is always meant to name a tool, and its errors are then those of its fields.
    Discriminator(lambda choice: "tool" if isinstance(choice, dict | NamedTool) else "mode"),
]


def check_choice(functions: Collection[str], choice: object, *, chosen: str | None) -> None:
    """Raise UserError when a request's tool_choice needs functions that are not offered.

    Args:
        functions: the names of those that are.
        choice: the tool_choice.
        chosen: the name of the function that it demands, where it names one.
    """
    if not functions and choice not in (None, "none", "auto"):
        raise UserError("tool_choice needs tools to choose from", param="tool_choice")
    if chosen is not None and chosen not in functions:
        raise UserError(
            f"tool_choice names {chosen!r}, which tools do not have: name one of {', '.join(sorted(functions))}",
            param="tool_choice",
        )
