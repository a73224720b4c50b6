"""OpenAI's `response_format` in the body of a request."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from bonbon.engines.structured.response_format import canonical
from bonbon.errors import UserError
from service.schemas.plain_json import PlainObject
from service.schemas.prompts import Text
from service.schemas.request_body import Body

FormatName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Typed(Body):
    """What every format has."""

    type: Literal["text", "json_object", "json_schema"]


class JsonSchemaFields(Body):
    """What a JSON schema may have."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: FormatName | None = None
    description: Text | None = None
    schema_: PlainObject | None = Field(None, alias="schema")
    """The schema that every candidate conforms to. Required with the type json_schema."""
    strict: bool | None = None
    """Accepted for compatibility. Candidates always conform to the schema."""


class JsonSchema(JsonSchemaFields):
    """A JSON schema with a name."""

    name: FormatName
    schema_: PlainObject = Field(alias="schema")
    """The schema that every candidate conforms to."""


class ResponseFormat(Typed):
    """The format of every candidate's text: any text, any JSON object, or JSON that conforms to a schema."""

    json_schema: JsonSchema | None = None
    """The schema. Required with the type json_schema, and allowed only with it."""

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise UserError(
                "response_format.json_schema and type json_schema need each other: give both, or neither",
                param="response_format.json_schema",
            )
        return self

    @property
    def canonical(self) -> str | None:
        """Returns the format as `Sampling.response_format` holds it."""
        return canonical(self.model_dump(mode="json", exclude_none=True))
