"""Copies lines to standard output and wraps each line that is not a JSON object as the `event` of one.

`output_relay.py` runs this file as a program, which imports nothing but the standard library, so that it starts fast.
"""

import json
import sys
from contextlib import suppress
from datetime import UTC, datetime

MAX_LINE = 2**20
"""The number of bytes after which a line is cut."""


def main() -> None:
    """Copies until standard input ends. A line that cannot be written, because a disk is full, is lost."""
    with open(1, "wb", buffering=0) as output:  # without a buffer, which would keep what a full disk refuses
        for line in iter(lambda: sys.stdin.buffer.readline(MAX_LINE), b""):
            text = line.decode(errors="replace").rstrip()
            if text:
                with suppress(OSError):
                    output.write((text if _is_object(text) else _as_object(text)).encode() + b"\n")


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
    main()
