"""The stored record of an API key, which never contains the key itself."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256

PREFIX = "bb-"


class Scope(StrEnum):
    """The operations that a key allows."""

    COMPLETE = "complete"  # create answers and list models
    FEEDBACK = "feedback"  # give feedback on answers of the same tenant
    EXPORT = "export"  # read the tenant's groups and pairs
    DELETE = "delete"  # delete the tenant's groups
    ADMIN = "admin"  # manage versions and aliases, which all tenants share


@dataclass(frozen=True, slots=True)
class Key:
    """A key's record. `digest` is the key's SHA-256; the key has 256 random bits and therefore needs no salt."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    digest: str
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None

    def valid(self, now: datetime) -> bool:
        """Returns whether the key is accepted at that time."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def new_key() -> str:
    """Returns a new key: 32 random bytes behind a prefix that scanners for leaked keys recognise."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """Returns the SHA-256 in hexadecimal of any text, including text that is not valid UTF-8."""
    return sha256(key.encode(errors="surrogatepass")).hexdigest()
