"""Schemas whose objects have the properties that they name, and no others."""

from collections.abc import Mapping
from typing import Any

NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose values are schemas by name."""
INNER = ("additionalProperties", "items", "prefixItems", "anyOf", "oneOf")
"""Keywords whose values are schemas, or lists of them."""
JOINING = ("allOf", "anyOf", "oneOf", "$ref")
"""Keywords that have an object's properties named in several places, of which none may exclude the others."""


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with `additionalProperties` false where an object names its properties and says nothing of others.

    JSON Schema allows any others there, and a weak model that may always add one goes on until it is cut off. What fits
    the closed schema fits the schema. One that joins objects with allOf stays as it is.
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
    """Whether an object's properties have all that it requires."""
    required = schema.get("required", [])
    return isinstance(required, list) and all(name in schema["properties"] for name in required)


def _has(value: Any, keyword: str) -> bool:
    if isinstance(value, Mapping):
        return keyword in value or any(_has(one, keyword) for one in value.values())
    return isinstance(value, list) and any(_has(one, keyword) for one in value)
