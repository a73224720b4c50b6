"""Identifies the caller of a request by its key."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from service.auth.keyring import Caller, Keyring
from service.errors import unauthorized

bearer = HTTPBearer(auto_error=False, description="A key created with `bonbon keys create`.")

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


def identify(keyring: Keyring, token: str | None, kind: str) -> Caller:
    """Returns the caller whose key is `token`; `kind` is the kind of key in the message.

    Raises:
        HTTPException: The key is missing or invalid (401).
    """
    if token is None:
        raise unauthorized(f"no {kind} key given: send it as `authorization: Bearer KEY`")
    caller = keyring.find(token)
    if caller is None:
        raise unauthorized(f"the {kind} key is invalid, revoked or expired")
    return caller


def caller(connection: HTTPConnection) -> Caller:
    """Returns the caller of `connection`, once `allow` has identified it."""
    found: Caller = connection.state.caller
    return found
