"""What is kept of an API key: never the key itself."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256

PREFIX = "bb-"


class Scope(StrEnum):
    """What a key may be used for."""

    COMPLETE = "complete"  # answers, and the list of models
    FEEDBACK = "feedback"  # a word on an answer of the same tenant
    EXPORT = "export"  # read the tenant's groups and pairs
    DELETE = "delete"  # delete the tenant's groups
    ADMIN = "admin"  # versions and aliases, which every tenant shares


@dataclass(frozen=True, slots=True)
class Key:
    """A key's record. `digest` is the SHA-256 of the key, which has 256 random bits: it needs no salt."""

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    digest: str
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None

    def valid(self, now: datetime) -> bool:
        """Whether it opens anything at that time."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def new_key() -> str:
    """A key: 32 random bytes behind a prefix that scanners for leaked keys can know."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """SHA-256 in hexadecimal. Any text has one, also what is not UTF-8."""
    return sha256(key.encode(errors="surrogatepass")).hexdigest()
