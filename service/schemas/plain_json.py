"""JSON objects of any content, such as a schema, that can be logged and sent on as they are."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def check_plain(value: dict[str, Any]) -> dict[str, Any]:
    """`value` as it is. Raises PydanticCustomError for what JSON cannot hold, although Python's parser lets it in."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # the first also for half a surrogate pair
        raise PydanticCustomError("plain_json", "the values must be plain JSON: no NaN, no broken text") from error
    return value


PlainObject = Annotated[dict[str, Any], AfterValidator(check_plain)]
