"""Reads secrets from files instead of the environment, as container platforms provide them."""

import os
from collections.abc import Mapping
from pathlib import Path

from bonbon.errors import UserError

SUFFIX = "_FILE"


def secret(name: str) -> str | None:
    """Returns the environment variable `name`, or the content of the file named by `name`_FILE; None if neither is set.

    Raises the same UserError as `with_files`.
    """
    return with_files({key: value for key, value in os.environ.items() if key in (name, name + SUFFIX)}).get(name)


def with_files(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns `variables` with each NAME_FILE replaced by NAME and the text of the file, without its final newline.

    Raises UserError, which never shows a value, when a file cannot be read or is empty, or when NAME is set, too.
    """
    values = {name: value for name, value in variables.items() if not name.upper().endswith(SUFFIX)}
    given = {name.upper() for name in values}
    for variable in variables.keys() - values.keys():
        name = variable[: -len(SUFFIX)]
        if name.upper() in given:
            raise UserError(f"both {name} and {variable} are set: keep only one of them")
        values[name] = _text(variable, variables[variable])
    return values


def _text(variable: str, path: str) -> str:
    try:
        text = Path(path).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"{variable} = {path!r} cannot be read: {reason}") from error
    if not text.strip():
        raise UserError(f"{variable} = {path!r} is empty: write the value into the file, or unset the variable")
    return text
