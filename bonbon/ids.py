"""Identifiers that sort by the time they were made, so that the newest rows lie together in an index."""

import secrets
import time
from threading import Lock

ID_LENGTH = 32
"""Characters of an id."""

_lock = Lock()
_last = 0


def time_ordered_id() -> str:
    """32 hex digits: a version-7 UUID (RFC 9562, section 5.7) without its dashes.

    Those of one process sort in the order they were made, also when the clock is set back: after the milliseconds come
    their 4096ths, and none is given twice (section 6.2, method 3).
    """
    global _last
    with _lock:
        _last = ticks = max(time.time_ns() * 4096 // 1_000_000, _last + 1)
    millis, fraction = divmod(ticks, 4096)
    return f"{millis << 80 | 0x7 << 76 | fraction << 64 | 0x2 << 62 | secrets.randbits(62):032x}"
