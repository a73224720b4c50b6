"""Formats figures as text: tables, estimates with their intervals, and means over seeds with their range."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; the first column is text, the others are numbers."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["-", *["-:"] * (len(head) - 1)], *rows))


def interval(value: float, low: float, high: float, digits: int) -> str:
    """Returns the value with its interval."""
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def estimate(found: Mapping[str, float] | None, *, digits: int = 2, missing: str = "") -> str:
    """Returns an evaluation's estimate with its interval, or `missing` if there is none."""
    return missing if found is None else interval(found["value"], found["low"], found["high"], digits)


def spread(values: Sequence[float], digits: int) -> str:
    """Returns the mean, with the range when there are several values."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def points(values: Sequence[float]) -> str:
    """Returns shares as percentage points."""
    return spread([100 * value for value in values], 2)
