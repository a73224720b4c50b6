"""Identifiers that sort by the time they were made, so that the newest rows lie together in an index."""

import os
import time


def time_ordered_id() -> str:
    """32 hex digits: a version-7 UUID (RFC 9562, section 5.7) without its dashes."""
    millis = time.time_ns() // 1_000_000
    value = (millis << 80) | int.from_bytes(os.urandom(10), "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return f"{value:032x}"
