"""Which addresses are this machine's own."""

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches `host`, or is reached from it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
