"""Formats tracebacks so that they contain no secrets."""

import traceback

MAX_LINE_LENGTH = 500
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def format_traceback(error: BaseException) -> str:
    """Returns the traceback of an error and of the errors that led to it.

    Local variables are left out, because they contain keys, passwords and prompts. Only the first line of each message
    is kept, because databases and validators quote their input in the lines after it.
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
        message = str(error)
    except Exception:  # noqa: BLE001 - an error whose message cannot be formatted must still appear
        message = "<the message cannot be formatted>"
    first = (message.splitlines() or [""])[0][:MAX_LINE_LENGTH]
    return f"{name}: {first}\n" if first else f"{name}\n"
