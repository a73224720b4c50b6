"""Values that may be in files instead of the environment, as container platforms give secrets."""

import os
from collections.abc import Mapping
from pathlib import Path

from bonbon.errors import UserError

SUFFIX = "_FILE"


def secret(name: str) -> str | None:
    """The environment variable `name`, or what the file that `name`_FILE names holds; None without either.

    Raises UserError as `with_files` does.
    """
    return with_files({key: value for key, value in os.environ.items() if key in (name, name + SUFFIX)}).get(name)


def with_files(variables: Mapping[str, str]) -> dict[str, str]:
    """`variables`, each NAME_FILE replaced by NAME with the file's text, without the line's end.

    Raises UserError, showing no value, when a file cannot be read or is empty, or NAME is given, too.
    """
    values = {name: value for name, value in variables.items() if not name.upper().endswith(SUFFIX)}
    given = {name.upper() for name in values}
    for variable in variables.keys() - values.keys():
        name = variable[: -len(SUFFIX)]
        if name.upper() in given:
            raise UserError(f"both {name} and {variable} are set: give the value or the file that holds it")
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
