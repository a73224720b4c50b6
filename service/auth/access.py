"""What a request needs a key for, and whose it is."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from bonbon.keys.key_records import Scope
from service.app_state import get_parts
from service.auth.keyring import ANYBODY, Caller, Keyring
from service.errors import unauthorized

bearer = HTTPBearer(auto_error=False, description="A key, as `bonbon keys create` makes it.")

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


def allow(scope: Scope) -> Callable[[Request, HTTPAuthorizationCredentials | None], Awaitable[None]]:
    """A FastAPI dependency that lets in whoever may use `scope`; `caller` then says who that is.

    Raises 401 for a missing or wrong key, 403 for one without the scope.
    """

    async def check(request: Request, credentials: Credentials) -> None:
        keyring = get_parts(request).keyring
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


def identify(keyring: Keyring, token: str | None, kind: str) -> Caller:
    """Whose key `token` is; `kind` is what it is called. Raises 401 for a missing or wrong one."""
    if token is None:
        raise unauthorized(f"no {kind} key given: send it as `authorization: Bearer KEY`")
    caller = keyring.find(token)
    if caller is None:
        raise unauthorized(f"the {kind} key is wrong, revoked or expired")
    return caller


def caller(connection: HTTPConnection) -> Caller:
    """Whose request came by `connection`; after `allow`."""
    found: Caller = connection.state.caller
    return found
