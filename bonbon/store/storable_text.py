"""Text that every database can store, made from text that comes from anywhere: the one place where it is changed.

PostgreSQL stores neither NUL nor half a surrogate pair, and a column of bounded length refuses what is longer.
"""

from hashlib import sha256
from math import isfinite
from typing import Any

NAME_LENGTH = 255
"""Characters that the name of a model, of a reward or of a reward's version may have."""
REASON_LENGTH = 2000
"""Characters that the reason why a reward failed may have."""


def clean_text(value: str) -> str:
    """`value` with NUL and lone surrogates replaced by U+FFFD."""
    text = value.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def clean_name(value: str, length: int = NAME_LENGTH) -> str:
    """`value` as in `clean_text` and at most `length` characters long.

    A longer one keeps its beginning and ends with a digest of the whole, so that different names stay different.
    """
    text = clean_text(value)
    if len(text) <= length:
        return text
    mark = f"…{sha256(text.encode()).hexdigest()[:16]}"
    return text[: length - len(mark)] + mark


def clean_document(value: Any) -> Any:
    """A JSON value whose texts are as in `clean_text`, with null for numbers that are not finite."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_document(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
