"""The key that /v1 asks for, when one is set."""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.errors import unauthorized
from service.parts import get_parts

bearer = HTTPBearer(auto_error=False, description="Needed when the service has an api_key set.")


async def require_api_key(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """A FastAPI dependency that lets nobody in without the key. Raises a 401."""
    key = get_parts(request).settings.service.api_key
    if key is None:
        return
    if credentials is None:
        raise unauthorized("no API key given: send it as `authorization: Bearer KEY`")
    if not hmac.compare_digest(credentials.credentials.encode(), key.get_secret_value().encode()):
        raise unauthorized("the API key is wrong")
