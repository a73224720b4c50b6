"""Ratios that a long run measures, against what they should be: told, and no reason to fail on a machine that is busy."""


def told(what: str, ratio: float, most: float) -> str:
    """A line that says PASS or MISS."""
    return f"{'PASS' if ratio <= most else 'MISS'}: {what} {ratio:.2f} times, wanted {most:g} at most"
