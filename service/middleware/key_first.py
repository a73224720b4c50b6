"""Checks a request's key before its body is read."""

from fastapi import HTTPException
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.auth.access import identify
from service.auth.keyring import Keyring
from service.errors import problem_of

TOKENS = frozenset({"/tokenize", "/detokenize"})


class KeyFirst:
    """ASGI middleware that answers a 401 for a missing or invalid key before the body is read.

    Routes check the key, too, because they know which scope they need.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self.app, self.keyring = app, keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (kind := self._needed(scope["path"])) is not None:
            scheme, token = get_authorization_scheme_param(Headers(scope=scope).get("authorization"))
            try:
                identify(self.keyring, token if scheme.lower() == "bearer" and token else None, kind)
            except HTTPException as refused:
                await problem_of(refused).response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _needed(self, path: str) -> str | None:
        """Returns which kind of key a path needs, or None."""
        if (path.startswith("/v1/") or path in TOKENS) and self.keyring.required:
            return "API"
        if path.startswith("/admin/") and self.keyring.has_admin_keys:
            return "admin"
        return None
