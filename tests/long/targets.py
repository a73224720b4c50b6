"""What a long run measures against what it should be: told, for a busy machine is no reason to fail."""


def told(what: str, ratio: float, most: float) -> str:
    """A line that says PASS or MISS."""
    return f"{'PASS' if ratio <= most else 'MISS'}: {what} {ratio:.2f} times, wanted {most:g} at most"
