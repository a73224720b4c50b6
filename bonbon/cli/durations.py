"""Parses lengths of time such as `30d`."""

import re
from datetime import UTC, datetime, timedelta

from bonbon.errors import UserError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def age(text: str, option: str) -> timedelta:
    """Parses a length of time such as `90s`, `45m`, `12h`, `30d` or `2w`.

    Raises:
        UserError: The text has another form. The message names `option`.
    """
    match = re.fullmatch(r"(\d+)([smhdw])", text)
    try:
        if match is None:
            raise ValueError(text)
        length = timedelta(**{UNITS[match[2]]: int(match[1])})
        datetime.now(UTC) - length
        datetime.now(UTC) + length
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{option} is {text!r}: give a number and a unit, such as 90s, 45m, 12h, 30d or 2w",
            param=option.removeprefix("--").replace("-", "_"),
        ) from error
    return length
