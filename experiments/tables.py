"""Formats figures as text: a mean over seeds with the lowest and highest of them."""

from collections.abc import Iterable, Sequence
from statistics import fmean


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; the first column is text, the others are numbers."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["-", *["-:"] * (len(head) - 1)], *rows))


def spread(values: Sequence[float], digits: int) -> str:
    """Returns the mean, with the range when there are several values."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def points(values: Sequence[float]) -> str:
    """Returns shares as percentage points."""
    return spread([100 * value for value in values], 2)
