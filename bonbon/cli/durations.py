"""Lengths of time as people write them."""

import re
from datetime import UTC, datetime, timedelta

from bonbon.errors import UserError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def age(text: str, option: str) -> timedelta:
    """`90s`, `45m`, `12h`, `30d` or `2w`. Raises UserError, naming `option`, for anything else."""
    match = re.fullmatch(r"(\d+)([smhdw])", text)
    try:
        if match is None:
            raise ValueError(text)
        length = timedelta(**{UNITS[match[2]]: int(match[1])})
        datetime.now(UTC) - length
        datetime.now(UTC) + length
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{option} is {text!r}; give a number and a unit: 90s, 45m, 12h, 30d or 2w",
            param=option.removeprefix("--").replace("-", "_"),
        ) from error
    return length
