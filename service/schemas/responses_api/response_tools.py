"""Tools in a request for a response, where a tool and its function are one object."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from service.schemas.request_body import Body
from service.schemas.tools import Function, FunctionName, Tool
from service.schemas.without_effect import Neutral


def _function_only(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError(
            "unsupported",
            "{kind} is not supported here: only functions can be called, which the client runs itself",
            {"kind": repr(kind[:40])},
        )
    return kind


class Typed(Body):
    """What every tool has."""

    type: Annotated[Literal["function"], BeforeValidator(_function_only)]


# In this order of the bases the type is the first field, and an error in it the first error.
class FunctionTool(Function, Typed):
    """A function that may be called."""

    allowed_callers: Annotated[None, Neutral([], ["direct"])] = None
    async_: Annotated[None, Neutral(False)] = Field(None, alias="async")
    defer_loading: Annotated[None, Neutral(False)] = None
    output_schema: Annotated[None, Neutral({})] = None

    @property
    def tool(self) -> Tool:
        """Returns the tool as chat completions have it."""
        function = Function.model_validate({name: getattr(self, name) for name in Function.model_fields})
        return Tool(type="function", function=function)

    @property
    def echo(self) -> dict[str, Any]:
        """Returns the tool as the response repeats it."""
        shown = {"type", "name", "description", "parameters", "strict"}
        return self.model_dump(include=shown) | {"strict": bool(self.strict)}


class NamedFunctionTool(Typed):
    """The function that must be called."""

    name: FunctionName


def _parse_choice(value: Any) -> Any:
    """Raises ValidationError. Unlike those of a union, its errors have the object's own paths."""
    if isinstance(value, dict):
        return NamedFunctionTool.model_validate(value)
    if value not in ("none", "auto", "required"):
        raise PydanticCustomError("tool_choice", "must be none, auto, required, or the function to be called")
    return value


FunctionTools = Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)]
FunctionToolChoice = Annotated[Literal["none", "auto", "required"] | NamedFunctionTool, BeforeValidator(_parse_choice)]
