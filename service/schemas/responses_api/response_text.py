"""The `text` of a request for a response: the format of the answer."""

from typing import Annotated

from bonbon.errors import UserError
from service.schemas.request_body import Body
from service.schemas.response_format import JsonSchema, JsonSchemaFields, ResponseFormat, Typed
from service.schemas.without_effect import Neutral


# In this order of the bases the type is the first field, and an error in it the first error.
class TextFormat(JsonSchemaFields, Typed):
    """The format of every candidate's text: a `response_format` without the nested object `json_schema`."""

    @property
    def response_format(self) -> ResponseFormat:
        """Returns the format as chat completions have it. Raises UserError when the schema contradicts the type."""
        if self.type != "json_schema":
            if self.schema_ is not None:
                raise UserError(
                    "a schema needs the type json_schema: change the type, or leave the schema out",
                    param="text.format.type",
                )
            return ResponseFormat(type=self.type)
        for field, value in (("name", self.name), ("schema", self.schema_)):
            if value is None:
                raise UserError(f"the type json_schema needs a {field}: give it one", param=f"text.format.{field}")
        schema = self.model_dump(exclude={"type"}, exclude_none=True)
        return ResponseFormat(type=self.type, json_schema=JsonSchema.model_validate(schema))


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Annotated[None, Neutral("medium")] = None
