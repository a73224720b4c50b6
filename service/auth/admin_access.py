"""Who may use /admin: whoever has a key for it; while there is no key at all, this machine."""

from typing import Annotated

from fastapi import Depends, HTTPException
from starlette.requests import Request

from bonbon.keys.key_records import Scope
from service.app_state import Parts, get_parts
from service.auth.access import Credentials, identify
from service.auth.local_requests import is_loopback, why_not_local

REMEDY = "set BONBON_SERVICE__ADMIN_KEY, or make a key with `bonbon keys create --scope admin`"


def require_admin(request: Request, parts: Annotated[Parts, Depends(get_parts)], credentials: Credentials) -> None:
    """A FastAPI dependency. Raises 401 for a wrong or missing key, 403 for a key without the scope `admin`.

    Where no key of any kind was ever made and the service listens to this machine only, requests that are made on this
    machine need none; docs/decisions/0010-admin-without-a-key.md says why.
    """
    keyring = parts.keyring
    caller = None if credentials is None else keyring.find(credentials.credentials)
    if caller is not None and Scope.ADMIN not in caller.scopes:
        raise HTTPException(403, "this key has not the scope admin, which this needs")
    if keyring.has_admin_keys:
        identify(keyring, None if credentials is None else credentials.credentials, "admin")
        return
    if keyring.required or not is_loopback(parts.settings.service.host):
        raise HTTPException(403, f"/admin needs a key of its own here: {REMEDY}")
    if reason := why_not_local(request):
        raise HTTPException(
            403, f"without a key /admin answers to this machine only, and this request is refused: {reason}. {REMEDY}"
        )
