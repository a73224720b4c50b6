"""Values that a person has given, in messages about them."""

import re
from collections.abc import Mapping
from typing import Any

SECRET = ("_key", "_password")
"""How the names of settings and options end whose values are secrets."""
CREDENTIALS = re.compile("//.*@")


def shown_input(item: Mapping[str, Any]) -> str:
    """` = ` and the value that one of pydantic's errors is about, for a message; nothing where it may be a secret.

    The value of a whole object, or of a list of them, is everything that was given for it, secrets included, and a URL
    may have credentials.
    """
    value = item["input"]
    if _has_objects(value) or any(str(name).endswith(SECRET) for name in item["loc"]):
        return ""
    return f" = {CREDENTIALS.sub('//***@', repr(value))}"


def _has_objects(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(map(_has_objects, value)))
