"""Copies lines to standard output, those that are no JSON objects as the `event` of one.

`output_relay.py` runs this file as a program, which imports nothing but the standard library, so that it starts fast.
"""

import json
import sys
from datetime import UTC, datetime

MAX_LINE = 2**20
"""The bytes after which a line is cut."""


def main() -> None:
    """Copies until the last process that writes to standard input has ended."""
    for line in iter(lambda: sys.stdin.buffer.readline(MAX_LINE), b""):
        text = line.decode(errors="replace").rstrip()
        if text:
            print(text if _is_object(text) else _as_object(text), flush=True)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _as_object(text: str) -> str:
    # Without a level of its own, a line is more likely to be a warning than not.
    return json.dumps(
        {"event": text, "level": "warning", "logger": "output", "timestamp": datetime.now(UTC).isoformat()}
    )


if __name__ == "__main__":
    main()
