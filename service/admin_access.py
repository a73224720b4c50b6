"""Who may use /admin: whoever has the key; without one set, this machine only."""

import hmac
import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials
from starlette.requests import Request

from service.api_key import bearer
from service.errors import unauthorized
from service.parts import Parts, get_parts

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def require_admin(
    request: Request,
    parts: Annotated[Parts, Depends(get_parts)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """A FastAPI dependency. Raises 401 for a wrong or missing key, 403 when no key is set and the caller is not local.

    A request that a proxy forwarded is not local, nor is one that a page of another site made the browser send.
    """
    key = parts.settings.service.admin_key
    if key is None:
        if not _is_local(request):
            raise HTTPException(
                403, "without an admin key /admin answers to this machine only; set BONBON_SERVICE__ADMIN_KEY"
            )
        return
    if credentials is None:
        raise unauthorized("no admin key given: send it as `authorization: Bearer KEY`")
    if not hmac.compare_digest(credentials.credentials.encode(), key.get_secret_value().encode()):
        raise unauthorized("the admin key is wrong")


def _is_local(request: Request) -> bool:
    if request.client is None or any(header in request.headers for header in FORWARDED):
        return False
    origin = request.headers.get("origin")
    return _is_loopback(request.client.host) and (origin is None or _is_loopback(urlsplit(origin).hostname))


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
