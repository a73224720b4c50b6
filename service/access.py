"""What a request needs a key for, and whose it is."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from bonbon.keys.records import Scope
from service.errors import unauthorized
from service.keyring import ANYBODY, Caller
from service.parts import get_parts

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
        if credentials is None:
            raise unauthorized("no API key given: send it as `authorization: Bearer KEY`")
        caller = keyring.find(credentials.credentials)
        if caller is None:
            raise unauthorized("the API key is wrong, revoked or expired")
        if scope not in caller.scopes:
            raise HTTPException(403, f"this key has not the scope {scope!s}, which this needs")
        request.state.caller = caller

    return check


def caller(connection: HTTPConnection) -> Caller:
    """Whose request came by `connection`; after `allow`."""
    found: Caller = connection.state.caller
    return found
