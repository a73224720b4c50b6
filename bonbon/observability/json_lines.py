"""Copies lines to standard output and wraps each line that is not a JSON object as the `event` of one.

`output_relay.py` runs this file as a program, which imports nothing but the standard library, so that it starts fast.
"""

import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

INPUT, OUTPUT = 0, 1
MAX_LINE = 2**20
"""The number of bytes after which a line is cut."""


def main(life: int) -> None:
    """Copies until standard input ends, or `life` has ended and nothing is left to read.

    A line that cannot be written, because a disk is full, is lost.
    """
    for line in _lines(life):
        text = line.decode(errors="replace").rstrip()
        if text:
            _write((text if _is_object(text) else _as_object(text)).encode() + b"\n")


def _lines(life: int) -> Iterator[bytes]:
    rest = b""
    while INPUT in select.select([INPUT, life], [], [])[0]:
        read = os.read(INPUT, 2**16)
        if not read:
            break
        *lines, rest = (rest + read).split(b"\n")
        if len(rest) > MAX_LINE:
            lines, rest = [*lines, rest], b""
        yield from lines
    yield rest


def _write(data: bytes) -> None:
    with suppress(OSError):
        while data:
            data = data[os.write(OUTPUT, data) :]


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _as_object(text: str) -> str:
    # Without a level of its own, a line is more likely to be a warning than not.
    return json.dumps(
        {"event": text, "level": "warning", "logger": "output", "timestamp": datetime.now(UTC).isoformat()}
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
