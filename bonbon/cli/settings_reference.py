"""Writes docs/settings.md: `python -m bonbon.cli.settings_reference > docs/settings.md`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from bonbon.settings import PREFIX, RewardSpec, Section, Settings

HEAD = f"""# Settings

This page lists every setting. `make docs` generates it from `bonbon/settings.py`; do not edit it by hand.

Settings are read from the arguments of a command, from the environment, and from `bonbon.toml` in the working
directory (`{PREFIX}CONFIG` names another file); the first of these that gives a value wins. `service.port` is
`{PREFIX}SERVICE__PORT` in the environment and `port` under `[service]` in the file. Append `_FILE` to a variable's name
to read the value from a file, as in `{PREFIX}SERVICE__API_KEY_FILE=/run/secrets/api_key`. In the environment, write
lists and objects as JSON. An unknown setting is an error.
"""
BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


def reference() -> str:
    """Returns the page as Markdown."""
    tables = [_table("General", Settings, "")]
    tables += [
        _table(f"`[{name}]`", field.annotation, f"{name}.")
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    ]
    return HEAD + "".join(tables)


def _table(title: str, section: Any, path: str) -> str:
    introduction = _one_line(section.__doc__)
    rows = "".join(_rows(section, path))
    return f"\n## {title}\n\n{introduction}\n\n| setting | value | default | meaning |\n|-|-|-|-|\n{rows}"


def _rows(section: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            if path:
                yield from _rows(kind, f"{path}{name}.")
            continue
        yield f"| `{path}{name}` | {_value(field)} | {_default(field)} | {_one_line(field.description)} |\n"


def _value(field: FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(bound, sign)}" for bound in field.metadata for sign, word in BOUNDS if hasattr(bound, sign)
    ]
    return ", ".join([_kind(field.annotation), *bounds])


def _kind(kind: Any) -> str:
    """Describes in words which values a setting of this type takes."""
    origin, arguments = get_origin(kind), [argument for argument in get_args(kind) if argument is not type(None)]
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (list, tuple):
        return "list"
    if origin is dict or kind is RewardSpec:
        return "object" if origin is dict else "text or object"
    if arguments:
        return _kind(arguments[0])
    return {bool: "true or false", int: "whole number", float: "number", SecretStr: "secret"}.get(kind, "text")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value in (None, "", {}):
        return ""
    return f"`{value if isinstance(value, str | Path) else json.dumps(value)}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
