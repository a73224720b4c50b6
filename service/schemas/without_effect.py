"""Defines the values that are accepted in fields that clients send although the service does not support them."""

from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Neutral:
    """Marks a field that the service does not support: `Annotated[None, Neutral(0)]`.

    Args:
        values: what may be sent all the same, because it asks for nothing; null always may.
        why: what a refusal says.
    """

    def __init__(self, *values: Any, why: str = "this field is not supported here: leave it out") -> None:
        self.values, self.why = values, why

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [*self.values, None], "description": "Not supported: only values that ask for nothing."}

    def _check(self, value: Any) -> None:
        if value is None or any(_same(value, neutral) for neutral in self.values):
            return
        raise PydanticCustomError("unsupported", "{why}", {"why": self.why})


class _Ignored:
    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(lambda value: None)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"description": "Accepted with any value, which changes no answer."}


Ignored = Annotated[None, _Ignored()]
"""A field that changes no answer whatever its value is. It reads as None."""


def _same(value: Any, neutral: Any) -> bool:
    """Compares values as JSON does. In Python, false equals 0."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def asking_nothing(*values: Any) -> BeforeValidator:
    """For a supported optional field: these values request nothing, as null does."""
    return BeforeValidator(lambda value: None if any(_same(value, neutral) for neutral in values) else value)


def _blank(value: Any) -> Any:
    return None if value in ("", []) else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


BLANK = BeforeValidator(_blank)
"""For an optional field: an empty string or list counts as absent."""
WHOLE = BeforeValidator(_whole)
"""For an integer: accepts 8.0 as 8, because JSON's numbers have one type."""
