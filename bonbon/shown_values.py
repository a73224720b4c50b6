"""Shows the values that a user has given in messages about them, and hides secrets."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

SECRET = ("_key", "_password")
"""The suffixes of the names of settings and options whose values are secret."""
CREDENTIALS = re.compile("//.*@")


def shown_input(item: Mapping[str, Any]) -> str:
    """Returns ` = ` and the value that one of pydantic's errors is about, or nothing where the value may be a secret.

    The value of a whole object, or of a list of objects, contains everything that was given for it, secrets included.
    Credentials in a URL are masked.
    """
    value = item["input"]
    if _has_objects(value) or any(str(name).endswith(SECRET) for name in item["loc"]):
        return ""
    return f" = {CREDENTIALS.sub('//***@', repr(value))}"


def describe_problems(error: ValidationError, *, unknown: str) -> str:
    """Describes pydantic's errors in a user's options; `unknown` is what to say about an unknown name."""
    return "; ".join(_describe(item, unknown) for item in error.errors())


def _describe(item: Mapping[str, Any], unknown: str) -> str:
    where = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{where}: {unknown}"
    if item["type"] == "missing":
        return f"{where} is required"
    return f"{where}{shown_input(item)}: {item['msg']}" if where else str(item["msg"])


def first_problem(error: ValidationError) -> str:
    """Returns the location and the message of the first of pydantic's errors, such as `data.0.id: Field required`."""
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def _has_objects(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(map(_has_objects, value)))
