"""Disks that run full while a round writes to them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bonbon.errors import BonbonError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(BonbonError):
    """There was no room for what a round has to write; it goes on where it was when there is."""


@contextmanager
def room_for(directory: Path) -> Iterator[None]:
    """Raises DiskFull, naming the round's `directory`, for whatever the block raises for want of room."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise DiskFull(
            f"no room is left for {directory}: make some; the round goes on where it was ({error})"
        ) from error


def _is_full(error: BaseException | None) -> bool:
    """Also where a library has made another error of it, or a training process has told of it in words."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in NO_ROOM) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
