"""FastAPI dependencies that control who may call a route."""

from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials

from bonbon.keys.key_records import Scope
from service.app_state import CurrentState, get_state
from service.auth.access import Credentials, identify
from service.auth.keyring import ANYBODY, Caller
from service.auth.local_requests import is_loopback, why_not_local

REMEDY = "set BONBON_SERVICE__ADMIN_KEY, or create a key with `bonbon keys create --scope admin`"


def allow(scope: Scope) -> Callable[[Request, HTTPAuthorizationCredentials | None], Awaitable[None]]:
    """Returns a FastAPI dependency that requires a key with `scope` and identifies the `caller`.

    The dependency answers a 401 for a missing or invalid key and a 403 for a key without the scope.
    """

    async def check(request: Request, credentials: Credentials) -> None:
        keyring = get_state(request).keyring
        if not keyring.required and scope in ANYBODY:
            # A known key identifies the caller even if no key is required.
            caller = keyring.find(credentials.credentials) if credentials is not None else None
            request.state.caller = caller or Caller("", ANYBODY)
            return
        caller = identify(keyring, None if credentials is None else credentials.credentials, "API")
        if scope not in caller.scopes:
            raise HTTPException(403, f"this key lacks the scope {scope!s}, which this route requires")
        request.state.caller = caller

    return check


def require_admin(request: Request, state: CurrentState, credentials: Credentials) -> None:
    """A FastAPI dependency that answers a 401 for a missing or invalid key and a 403 for a key without the scope
    `admin`.

    If no key of any kind has ever been created and the service listens on a loopback address only, requests from this
    machine need no key; docs/decisions/0010-admin-without-a-key.md gives the reasons.
    """
    keyring = state.keyring
    caller = None if credentials is None else keyring.find(credentials.credentials)
    if caller is not None and Scope.ADMIN not in caller.scopes:
        raise HTTPException(403, "this key lacks the scope admin, which this route requires")
    if keyring.has_admin_keys:
        identify(keyring, None if credentials is None else credentials.credentials, "admin")
        return
    if keyring.required or not is_loopback(state.settings.service.host):
        raise HTTPException(403, f"/admin requires an admin key: {REMEDY}")
    if reason := why_not_local(request):
        raise HTTPException(
            403,
            "without a key, /admin answers requests from this machine only; this one is refused because "
            f"{reason}. {REMEDY}",
        )
