"""Who may use /admin: whoever has a key for it; before there is one, this machine only."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException
from starlette.requests import Request

from bonbon.keys.records import Scope
from service.access import Credentials
from service.errors import unauthorized
from service.loopback import is_loopback
from service.parts import Parts, get_parts

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def require_admin(request: Request, parts: Annotated[Parts, Depends(get_parts)], credentials: Credentials) -> None:
    """A FastAPI dependency. Raises 401 for a wrong or missing key, 403 for a key without the scope `admin`.

    When no such key was ever made and none is set, a caller that is not local gets a 403. A request that a proxy
    forwarded is not local, nor is one that a page of another site made the browser send.
    """
    caller = None if credentials is None else parts.keyring.find(credentials.credentials)
    if caller is not None and Scope.ADMIN not in caller.scopes:
        raise HTTPException(403, "this key has not the scope admin, which this needs")
    if not parts.keyring.has_admin_keys:
        if not _is_local(request):
            raise HTTPException(
                403,
                "without an admin key /admin answers to this machine only; set BONBON_SERVICE__ADMIN_KEY, or make a "
                "key with `bonbon keys create --scope admin`",
            )
        return
    if credentials is None:
        raise unauthorized("no admin key given: send it as `authorization: Bearer KEY`")
    if caller is None:
        raise unauthorized("the admin key is wrong, revoked or expired")


def _is_local(request: Request) -> bool:
    if request.client is None or any(header in request.headers for header in FORWARDED):
        return False
    origin = request.headers.get("origin")
    return is_loopback(request.client.host) and (origin is None or is_loopback(urlsplit(origin).hostname))
