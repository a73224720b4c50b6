"""Converts arbitrary text to text that every database can store. No other module changes text for storage.

PostgreSQL stores neither NUL nor half a surrogate pair, and a column of limited length refuses longer text.
"""

from hashlib import sha256
from math import isfinite
from typing import Any

NAME_LENGTH = 255
"""Most characters in the name of a model or a reward, or in a reward's version."""
REASON_LENGTH = 2000
"""Most characters in the reason why a reward failed."""


def clean_text(value: str) -> str:
    """Returns `value` with NUL and lone surrogates replaced by U+FFFD."""
    text = value.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def clean_name(value: str, length: int = NAME_LENGTH) -> str:
    """Returns `value` cleaned as by `clean_text` and shortened to `length` characters.

    A longer name keeps its beginning and ends with a digest of the whole, so that different names stay different.
    """
    text = clean_text(value)
    if len(text) <= length:
        return text
    mark = f"…{sha256(text.encode()).hexdigest()[:16]}"
    return text[: length - len(mark)] + mark


def clean_document(value: Any) -> Any:
    """Returns a JSON value with its texts cleaned by `clean_text` and null for numbers that are not finite."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_document(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
