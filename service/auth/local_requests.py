"""Recognises requests that a person or program on this machine made to this service."""

import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request

PROXIED = (
    "akamai-", "cdn-loop", "cf-", "client-ip", "cloudfront-", "fastly-", "fly-", "forwarded", "incap-", "tailscale-",
    "true-client-ip", "via", "wl-proxy-", "x-amz", "x-appengine-", "x-arr-", "x-azure-", "x-client-ip",
    "x-cluster-client-ip", "x-envoy-", "x-forwarded", "x-goog-", "x-host", "x-nf-", "x-nginx-", "x-original-",
    "x-originating-", "x-proxy", "x-real-ip", "x-remote-", "x-request-start", "x-rewrite-url", "x-scheme", "x-sucuri-",
    "x-varnish", "x-vercel-",
)  # fmt: skip
"""Prefixes of the headers that proxies, tunnels and content delivery networks add."""


def is_loopback(host: str | None) -> bool:
    """Returns whether `host` is a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def why_not_local(request: Request) -> str | None:
    """Returns why a request counts as remote, or None if it was made on this machine.

    A browser on this machine that shows a page of another site counts as remote: such a page can send requests to any
    address, and can make its own name resolve to this machine's address (DNS rebinding).
    """
    if request.client is None or not is_loopback(request.client.host):
        return "it comes from another machine"
    for name in request.headers:
        if name.replace("_", "-").startswith(PROXIED):
            return f"a proxy forwarded it (it has the header {name[:64]})"
    hosts = request.headers.getlist("host")
    if len(hosts) != 1 or not is_loopback(_name(hosts[0])):
        return "its Host header does not name this machine: use 127.0.0.1 or localhost"
    here = f"{request.url.scheme}://{hosts[0]}".lower()
    if any(origin.lower() != here for origin in request.headers.getlist("origin")):
        return "a page of another origin sent it"
    if not {"none", "same-origin"}.issuperset(request.headers.getlist("sec-fetch-site")):
        return "a page of another site sent it"
    return None


def _name(host: str) -> str | None:
    """Returns the host name in a Host header without its port, or None if the header is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None
