"""Tracebacks that may be shown to whoever reads the log."""

import traceback

LONGEST_LINE = 500
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def format_traceback(error: BaseException) -> str:
    """Where an error came from, and those that led to it.

    Local variables are left out, for they hold keys, passwords and prompts. Of each message only the first line is
    kept: what a database or a validator quotes of what it was given comes behind that.
    """
    return "".join(_parts(error, set())).rstrip("\n")


def _parts(error: BaseException, seen: set[int]) -> list[str]:
    seen.add(id(error))
    parts: list[str] = []
    cause, context = error.__cause__, error.__context__
    if cause is not None and id(cause) not in seen:
        parts += [*_parts(cause, seen), CAUSE]
    elif context is not None and not error.__suppress_context__ and id(context) not in seen:
        parts += [*_parts(context, seen), CONTEXT]
    parts += ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__), _title(error)]
    if isinstance(error, BaseExceptionGroup):
        for number, member in enumerate(error.exceptions, start=1):
            parts += [f"---- {number} of {len(error.exceptions)} ----\n", *_parts(member, seen)]
    return parts


def _title(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - an error that cannot say what it is must not hide itself
        said = "<it cannot be shown>"
    first = (said.splitlines() or [""])[0][:LONGEST_LINE]
    return f"{name}: {first}\n" if first else f"{name}\n"
