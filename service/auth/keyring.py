"""Who may call: keys as the database has them now, and those that the settings name."""

import asyncio
import hmac
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from pydantic import SecretStr

from bonbon.errors import StoreError, UserError
from bonbon.keys.key_records import Key, Scope, digest_of
from bonbon.keys.key_store import all_keys
from bonbon.settings import ServiceSettings
from bonbon.store.database import Database
from service.auth.local_requests import is_loopback

log = structlog.get_logger(__name__)

ANYBODY = frozenset({Scope.COMPLETE, Scope.FEEDBACK})
"""What needs no key where keys are not required: whatever reads or deletes needs one all the same."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and what the key that came with it may be used for."""

    tenant: str
    scopes: frozenset[Scope]


class Keyring:
    """Tells callers by their keys.

    Keys are required unless the setting `auth` is `off`, or it is `auto`, the service listens to this machine only and
    no key was ever made: revoking the last key opens nothing.

    Looked up every `settings.keys_poll` seconds; while the database does not answer, the keys last seen are good.
    """

    def __init__(self, database: Database, settings: ServiceSettings) -> None:
        self.database, self.settings = database, settings
        self._static = list(_static(settings))
        self._keys: list[Key] = list(self._static)
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the keys, then watch them.

        Raises UserError when the service would listen to other machines and there is no key at all.
        """
        await self._read()
        if not self._keys and self.required:
            raise UserError(
                f"listening on {self.settings.host!r} needs a key that clients send: make one with "
                "`bonbon keys create`, or set BONBON_SERVICE__API_KEY; --no-auth (BONBON_SERVICE__AUTH=off) lets "
                "everybody in",
                param="auth",
            )
        if not self.required and not is_loopback(self.settings.host):
            log.warning("everybody who reaches this address may use the service: auth is off", host=self.settings.host)
        self._watcher = asyncio.create_task(self._watch(), name="keyring")

    async def stop(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return needs_key(self.settings, has_keys=bool(self._keys))

    @property
    def has_admin_keys(self) -> bool:
        """Whether a key for /admin was ever made."""
        return any(Scope.ADMIN in key.scopes for key in self._keys)

    def find(self, token: str) -> Caller | None:
        """Whose key `token` is; None for nobody's, and for one that was revoked or has expired.

        Every digest is compared, each in constant time: how long it takes tells nothing.
        """
        digest, now, found = digest_of(token), datetime.now(UTC), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest) and key.valid(now):
                found = Caller(key.tenant, key.scopes)
        return found

    async def _read(self) -> None:
        self._keys = self._static + await all_keys(self.database)

    async def _watch(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(self.settings.keys_poll)
            try:
                await self._read()
                failing = False
            except StoreError as error:
                if not failing:
                    log.warning("cannot look keys up; those last seen are good", reason=error.why)
                failing = True
            except Exception:
                log.exception("cannot look keys up; those last seen are good")


def needs_key(settings: ServiceSettings, *, has_keys: bool) -> bool:
    """Whether a request needs a key, where there are keys or none."""
    if settings.auth == "auto":
        return has_keys or not is_loopback(settings.host)
    return settings.auth == "on"


def _static(settings: ServiceSettings) -> Iterator[Key]:
    """The settings' own keys, of the tenant without a name."""
    kinds: list[tuple[str, SecretStr | None, frozenset[Scope]]] = [
        ("api_key", settings.api_key, ANYBODY),
        ("admin_key", settings.admin_key, frozenset({Scope.ADMIN})),
    ]
    for name, key, scopes in kinds:
        if key is not None:
            yield Key(name, name, "", scopes, digest_of(key.get_secret_value()), datetime.now(UTC))
