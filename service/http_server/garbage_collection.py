"""Python's garbage collector, set for a service: requests make many objects, and next to no cycles."""

import gc

THRESHOLDS = (10_000, 20, 20)
"""New objects before a collection (Python's own 700 are half an answer's), and collections before an older one's."""


def settle_garbage() -> None:
    """Call once, when everything is loaded: what there is then is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
