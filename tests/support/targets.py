"""Compares measurements of a long run with their targets, without failing, because the machine may be busy."""


def told(what: str, ratio: float, most: float) -> str:
    """Returns a line that begins with PASS or MISS."""
    return f"{'PASS' if ratio <= most else 'MISS'}: {what} {ratio:.2f} times, wanted {most:g} at most"
