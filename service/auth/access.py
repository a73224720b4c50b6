"""Whose key a request carries."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from service.auth.keyring import Caller, Keyring
from service.errors import unauthorized

bearer = HTTPBearer(auto_error=False, description="A key, as `bonbon keys create` makes it.")

Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


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
