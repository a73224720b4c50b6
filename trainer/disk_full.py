"""Reports a full disk while a round writes its files."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bonbon.errors import BonbonError

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(BonbonError):
    """Raised when there is not enough disk space for a round's files. The round continues once space has been freed."""


@contextmanager
def disk_full_errors(directory: Path) -> Iterator[None]:
    """Raises DiskFull, which names the round's `directory`, for every error in the block that a full disk caused."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise DiskFull(
            f"the disk of {directory} is full: free some space, and the round continues where it stopped ({error})"
        ) from error


def _is_full(error: BaseException | None) -> bool:
    """Also recognises a full disk behind a library's own exception, or in the message of a training process."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
