"""Flushes files and directories to disk."""

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Flushes a file's contents, or a directory's entries, to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
