"""FastAPI dependencies that say who may call a route."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials

from bonbon.keys.key_records import Scope
from service.app_state import AppState, get_state
from service.auth.access import Credentials, identify
from service.auth.keyring import ANYBODY, Caller
from service.auth.local_requests import is_loopback, why_not_local

REMEDY = "set BONBON_SERVICE__ADMIN_KEY, or make a key with `bonbon keys create --scope admin`"


def allow(scope: Scope) -> Callable[[Request, HTTPAuthorizationCredentials | None], Awaitable[None]]:
    """A FastAPI dependency that lets in whoever may use `scope`; `caller` then says who that is.

    Raises 401 for a missing or wrong key, 403 for one without the scope.
    """

    async def check(request: Request, credentials: Credentials) -> None:
        keyring = get_state(request).keyring
        if not keyring.required and scope in ANYBODY:
            # A key that is known says whose the request is, also where none is needed.
            caller = keyring.find(credentials.credentials) if credentials is not None else None
            request.state.caller = caller or Caller("", ANYBODY)
            return
        caller = identify(keyring, None if credentials is None else credentials.credentials, "API")
        if scope not in caller.scopes:
            raise HTTPException(403, f"this key has not the scope {scope!s}, which this needs")
        request.state.caller = caller

    return check


def require_admin(request: Request, state: Annotated[AppState, Depends(get_state)], credentials: Credentials) -> None:
    """A FastAPI dependency. Raises 401 for a wrong or missing key, 403 for a key without the scope `admin`.

    Where no key of any kind was ever made and the service listens to this machine only, requests that are made on this
    machine need none; docs/decisions/0010-admin-without-a-key.md says why.
    """
    keyring = state.keyring
    caller = None if credentials is None else keyring.find(credentials.credentials)
    if caller is not None and Scope.ADMIN not in caller.scopes:
        raise HTTPException(403, "this key has not the scope admin, which this needs")
    if keyring.has_admin_keys:
        identify(keyring, None if credentials is None else credentials.credentials, "admin")
        return
    if keyring.required or not is_loopback(state.settings.service.host):
        raise HTTPException(403, f"/admin needs a key of its own here: {REMEDY}")
    if reason := why_not_local(request):
        raise HTTPException(
            403, f"without a key /admin answers to this machine only, and this request is refused: {reason}. {REMEDY}"
        )
