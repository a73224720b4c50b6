"""Fills a filesystem."""

import os
from pathlib import Path

import pytest


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Fills a filesystem except for `leave` bytes and returns the file that occupies it."""
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:  # noqa: PT012 - the last write is what fails
        while True:
            file.write(b"x" * 4096)
    os.truncate(ballast, max(0, ballast.stat().st_size - leave))
    return ballast
