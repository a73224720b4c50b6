"""JSON objects of any content, such as a schema, that can be logged and sent on as they are."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

DEEPEST = 100
"""The maximum nesting of objects and lists, because the code that reads them is recursive."""
MOST = 50_000
"""The maximum number of values in all objects and lists, because the code that reads them runs on the event loop."""


def check_plain(value: dict[str, Any]) -> dict[str, Any]:
    """`value` as it is.

    Raises PydanticCustomError for what JSON cannot hold, although Python's parser lets it in, and for what is nested
    too deeply or too large.
    """
    level: list[Any] = [value]
    count = 0
    for _ in range(DEEPEST):
        count += sum(map(len, level))
        if count > MOST:
            raise PydanticCustomError("too_many_values", f"there may be {MOST} values in it at most")
        level = [part for one in level for part in _parts(one)]
    if level:
        raise PydanticCustomError("nested", f"the values may be nested {DEEPEST} levels deep at most")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # the first also for half a surrogate pair
        raise PydanticCustomError("plain_json", "the values must be plain JSON: no NaN, no broken text") from error
    return value


def _parts(value: Any) -> Iterable[Any]:
    """Returns the objects and lists in an object or a list."""
    parts = value.values() if isinstance(value, dict) else value
    return [part for part in parts if isinstance(part, dict | list)]


PlainObject = Annotated[dict[str, Any], AfterValidator(check_plain)]
