"""Closes JSON schemas, so that objects have only the properties that the schema names."""

from collections.abc import Mapping
from typing import Any

NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""The keywords whose values map names to schemas."""
INNER = ("additionalProperties", "items", "prefixItems", "anyOf", "oneOf")
"""The keywords whose values are schemas, or lists of them."""
JOINING = ("allOf", "anyOf", "oneOf", "$ref")
"""The keywords that spread an object's properties over several schemas, of which none may exclude the others'."""


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema with `additionalProperties` false where an object names its properties and no rule for others.

    JSON Schema allows any other properties there, and a weak model that may always add one goes on until it is
    truncated. Whatever is valid under the closed schema is valid under the original one. A schema with allOf stays
    unchanged.
    """
    return dict(schema) if _has(schema, "allOf") else dict(_close(schema))


def _close(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_close(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    if "properties" in schema and any(keyword in schema for keyword in JOINING):
        return schema
    changed = dict(schema)
    for keyword in NAMED:
        if isinstance(schema.get(keyword), Mapping):
            changed[keyword] = {name: _close(one) for name, one in schema[keyword].items()}
    for keyword in INNER:
        if keyword in schema:
            changed[keyword] = _close(schema[keyword])
    if "properties" in schema and "patternProperties" not in schema and _names_all(schema):
        changed.setdefault("additionalProperties", False)
    return changed


def _names_all(schema: Mapping[str, Any]) -> bool:
    """Returns whether an object's properties include all that it requires."""
    required = schema.get("required", [])
    return isinstance(required, list) and all(name in schema["properties"] for name in required)


def _has(value: Any, keyword: str) -> bool:
    if isinstance(value, Mapping):
        return keyword in value or any(_has(one, keyword) for one in value.values())
    return isinstance(value, list) and any(_has(one, keyword) for one in value)
