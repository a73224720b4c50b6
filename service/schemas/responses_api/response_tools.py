"""Tools in a request for a response, where a tool and its function are one object."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from service.schemas.plain_json import PlainObject
from service.schemas.prompts import Text
from service.schemas.request_body import Body
from service.schemas.tools import Function, FunctionName, Tool
from service.schemas.without_effect import Ignored, Neutral


def _function_only(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError(
            "unsupported",
            "{kind} is not supported here: only functions can be called, which the client runs itself",
            {"kind": repr(kind[:40])},
        )
    return kind


FunctionType = Annotated[Literal["function"], BeforeValidator(_function_only)]


class FunctionTool(Body):
    """A function that may be called."""

    type: FunctionType
    name: FunctionName
    description: Text | None = None
    parameters: PlainObject | None = None
    """The JSON Schema of the arguments."""
    strict: bool | None = None
    """With true, arguments always conform to the schema. Such groups are never trained on."""
    allowed_callers: Annotated[None, Neutral([], ["direct"])] = None
    async_: Annotated[None, Neutral(False)] = Field(None, alias="async")
    defer_loading: Annotated[None, Neutral(False)] = None
    output_schema: Annotated[None, Neutral({})] = None
    cache_control: Ignored = None

    @property
    def tool(self) -> Tool:
        """Returns the tool as chat completions have it."""
        function = Function(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(type="function", function=function)

    @property
    def echo(self) -> dict[str, Any]:
        """Returns the tool as the response repeats it."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": bool(self.strict),
        }


class NamedFunctionTool(Body):
    """The function that must be called."""

    type: FunctionType
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
