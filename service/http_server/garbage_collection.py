"""Tunes Python's garbage collector for a service, whose requests create many objects but hardly any cycles."""

import gc

THRESHOLDS = (10_000, 20, 20)
"""Thresholds of the three generations. With Python's default, 700, a single answer would trigger several
collections."""


def settle_garbage() -> None:
    """Exempts all existing objects from garbage collection; call it once, when everything is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
