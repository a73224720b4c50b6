"""Fields that clients send although nothing depends on them: which values are accepted, which are refused by name."""

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
"""A field that changes no answer, whatever its value: it reads as None."""


def _same(value: Any, neutral: Any) -> bool:
    """Python takes false for 0, which JSON does not."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def asking_nothing(*values: Any) -> BeforeValidator:
    """For an optional field that is supported: these values ask for nothing, as null does."""
    return BeforeValidator(lambda value: None if any(_same(value, neutral) for neutral in values) else value)


def _blank(value: Any) -> Any:
    return None if value in ("", []) else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


BLANK = BeforeValidator(_blank)
"""For an optional field: an empty text or list is none."""
WHOLE = BeforeValidator(_whole)
"""For an integer: 8.0 is 8, as in JSON, whose numbers have one type."""
