"""The keys that are valid now: those in the database and those in the settings."""

import asyncio
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from pydantic import SecretStr

from bonbon.concurrency.shielded import end
from bonbon.errors import StoreError, UserError
from bonbon.keys.key_records import Key, Scope, digest_of
from bonbon.keys.key_store import all_keys
from bonbon.settings import ServiceSettings
from bonbon.store.database import Database
from service.auth.local_requests import is_loopback

log = structlog.get_logger(__name__)

ANYBODY = frozenset({Scope.COMPLETE, Scope.FEEDBACK})
"""Scopes of a request without a key where none is required. Reading or deleting data always needs a key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant of a request and the scopes of its key."""

    tenant: str
    scopes: frozenset[Scope]


class Keyring:
    """Identifies callers by their keys.

    Keys are required unless the setting `auth` is `off`, or it is `auto`, the service listens on a loopback address
    only and no key has ever been created. Revoking the last key therefore does not open the service.

    The keys are read again every `settings.keys_poll` seconds. While the database is unavailable, the last known keys
    stay valid.
    """

    def __init__(self, database: Database, settings: ServiceSettings) -> None:
        self.database, self.settings = database, settings
        self._static = list(_static(settings))
        self._keys: list[Key] = list(self._static)
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads the keys and starts to watch for changes.

        Raises:
            UserError: The service would be reachable from other machines, but no key exists.
        """
        await self._read()
        if not self._keys and self.required:
            raise UserError(
                f"listening on {self.settings.host!r} requires an API key: create one with `bonbon keys create`, or "
                "set BONBON_SERVICE__API_KEY; --no-auth (BONBON_SERVICE__AUTH=off) allows requests without a key",
                param="auth",
            )
        if not self.required and not is_loopback(self.settings.host):
            log.warning(
                "authentication is off: everybody who can reach this address can use the service",
                host=self.settings.host,
            )
        self._watcher = asyncio.create_task(self._watch(), name="keyring")

    async def stop(self) -> None:
        """Stops watching for changes."""
        if self._watcher is not None:
            await end(self._watcher)

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return needs_key(self.settings, has_keys=bool(self._keys))

    @property
    def has_admin_keys(self) -> bool:
        """Whether a key for /admin has ever been created."""
        return any(Scope.ADMIN in key.scopes for key in self._keys)

    def find(self, token: str) -> Caller | None:
        """Returns the caller whose key is `token`, or None if the key is unknown, revoked or expired.

        Every digest is compared, each in constant time, so that the duration reveals nothing.
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
                    log.warning("cannot read the keys; the last known keys stay valid", reason=error.why)
                failing = True
            except Exception:
                log.exception("cannot read the keys; the last known keys stay valid")


def needs_key(settings: ServiceSettings, *, has_keys: bool) -> bool:
    """Returns whether a request needs a key."""
    if settings.auth == "auto":
        return has_keys or not is_loopback(settings.host)
    return settings.auth == "on"


def _static(settings: ServiceSettings) -> Iterator[Key]:
    """Yields the keys in the settings, which belong to the unnamed tenant."""
    kinds: list[tuple[str, SecretStr | None, frozenset[Scope]]] = [
        ("api_key", settings.api_key, ANYBODY),
        ("admin_key", settings.admin_key, frozenset({Scope.ADMIN})),
    ]
    for name, key, scopes in kinds:
        if key is not None:
            yield Key(name, name, "", scopes, digest_of(key.get_secret_value()), datetime.now(UTC))
