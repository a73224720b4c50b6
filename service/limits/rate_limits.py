"""What each tenant may ask for per minute: token buckets, charged before anything is drawn."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from bonbon.errors import ClientTooSlow, RateLimited
from bonbon.settings import Limits

LONGEST_RETRY = 120
"""Seconds. OpenAI's clients do not retry at all when they are told to wait longer."""


class Bucket:
    """Holds a minute's worth and refills evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._then = float(per_minute), clock()

    @property
    def level(self) -> float:
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._then) * self.per_minute / 60)
        self._then = now
        return self._level

    def seconds_until(self, amount: float) -> float:
        """How long until it holds `amount`, or all it can; 0 when it does."""
        return max(0.0, min(amount, self.per_minute) - self.level) * 60 / self.per_minute

    def take(self, amount: float) -> None:
        """May leave it below zero: what asks for more than a minute's worth is let in when it is full, and paid off."""
        self._level = self.level - amount


@dataclass
class _Buckets:
    requests: Bucket | None
    tokens: Bucket | None

    def kinds(self, tokens: float) -> list[tuple[str, Bucket, float]]:
        named = (("requests", self.requests, 1.0), ("tokens", self.tokens, tokens))
        return [(kind, bucket, amount) for kind, bucket, amount in named if bucket is not None]


@dataclass
class Charge:
    """The tokens that a tenant was charged for a request, and how many of them were drawn, or may have been."""

    tokens: int
    drawn: int = 0


class RateLimits:
    """Charges tenants for requests and for the tokens that may be drawn for them.

    Args:
        default: of each tenant that `tenants` does not name.
    """

    def __init__(
        self, default: Limits, tenants: Mapping[str, Limits], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._default, self._tenants, self._clock = default, tenants, clock
        self._buckets: dict[str, _Buckets] = {}

    @contextmanager
    def charged(self, tenant: str, tokens: int) -> Iterator[Charge]:
        """Charge for a request that is answered within the block, and give back at its end what was not drawn.

        A request that fails costs nothing. One whose client leaves, or does not read its answer, counts as a request
        and pays for what was drawn.

        Raises RateLimited, with when to come back, and charges nothing then.
        """
        self.charge(tenant, tokens)
        charge, failed = Charge(tokens), False
        try:
            yield charge
        except Exception as error:
            failed = not isinstance(error, ClientTooSlow)  # it is the client's doing, as if it had left
            raise
        finally:
            self.refund(tenant, tokens if failed else tokens - charge.drawn, request=failed)

    def charge(self, tenant: str, tokens: int) -> None:
        """Raises RateLimited, with when to come back, and charges nothing then."""
        kinds = self._of(tenant).kinds(tokens)
        waits = [(bucket.seconds_until(amount), kind, bucket) for kind, bucket, amount in kinds]
        longest, kind, bucket = max(waits, key=lambda wait: wait[0], default=(0.0, "", None))
        if bucket is not None and longest > 0:
            retry = {"retry-after": str(min(LONGEST_RETRY, ceil(longest)))}
            raise RateLimited(
                f"more than {bucket.per_minute} {kind} per minute; a request counts max_tokens for each candidate "
                "until it is answered",
                headers=self.headers(tenant) | retry,
            )
        for _, bucket, amount in kinds:
            bucket.take(amount)

    def refund(self, tenant: str, tokens: int, *, request: bool = False) -> None:
        """Give back tokens that were not drawn, and with `request` the request that was not answered."""
        for kind, bucket, amount in self._of(tenant).kinds(tokens):
            if kind == "tokens" or request:
                bucket.take(-amount)

    def headers(self, tenant: str) -> dict[str, str]:
        """`x-ratelimit-...` as OpenAI's clients read them; empty for a tenant without limits."""
        told: dict[str, str] = {}
        for kind, bucket, _ in self._of(tenant).kinds(0):
            told[f"x-ratelimit-limit-{kind}"] = str(bucket.per_minute)
            told[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(bucket.level)))
            told[f"x-ratelimit-reset-{kind}"] = f"{bucket.seconds_until(bucket.per_minute):.3f}s"
        return told

    def _of(self, tenant: str) -> _Buckets:
        # Bounded: tenants are those that have a key.
        if tenant not in self._buckets:
            limits = self._tenants.get(tenant, self._default)
            buckets = [
                None if per_minute is None else Bucket(per_minute, self._clock)
                for per_minute in (limits.requests_per_minute, limits.tokens_per_minute)
            ]
            self._buckets[tenant] = _Buckets(*buckets)
        return self._buckets[tenant]
