"""Rate limits per tenant: token buckets, charged before anything is generated."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from bonbon.errors import ClientTooSlow, RateLimited
from bonbon.settings import Limits

MAX_RETRY_AFTER = 120
"""Maximum value of retry-after, in seconds. OpenAI's clients do not retry at all if it is larger."""


class Bucket:
    """A token bucket that holds one minute's allowance and refills evenly."""

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
        """Returns the seconds until the bucket contains `amount`, or is full if `amount` exceeds its size; 0 if it does
        now."""
        return max(0.0, min(amount, self.per_minute) - self.level) * 60 / self.per_minute

    def take(self, amount: float) -> None:
        """Takes `amount` out of the bucket.

        The level may become negative: a request that exceeds a minute's allowance is admitted when the bucket is full,
        and the following minutes pay for it.
        """
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
    """The tokens that a tenant was charged for a request.

    Attributes:
        tokens: Tokens that may be generated for the request, all of them charged until it is answered.
        drawn: Tokens that were generated, or may have been, and those of prompts that are part of the answer.
    """

    tenant: str
    tokens: int
    drawn: int = 0


class RateLimits:
    """Charges tenants for requests and for the tokens that may be generated for them.

    Args:
        default: Limits of each tenant that `tenants` does not contain.
    """

    def __init__(
        self, default: Limits, tenants: Mapping[str, Limits], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._default, self._tenants, self._clock = default, tenants, clock
        self._buckets: dict[str, _Buckets] = {}

    @contextmanager
    def charged(self, tenant: str, tokens: int) -> Iterator[Charge]:
        """Charges for the request that the block answers, and afterwards refunds the tokens that were not generated.

        A failed request costs nothing. If the client disconnects or does not read its answer, the request counts and
        its generated tokens are charged.

        Raises:
            RateLimited: The tenant exceeds a limit and is charged nothing. The headers contain the time to wait.
        """
        self.charge(tenant, tokens)
        charge, failed = Charge(tenant, tokens), False
        try:
            yield charge
        except Exception as error:
            failed = not isinstance(error, ClientTooSlow)  # the client caused it, as if it had disconnected
            raise
        finally:
            self.refund(tenant, charge.tokens - (0 if failed else charge.drawn), request=failed)

    def charge(self, tenant: str, tokens: int) -> None:
        """Charges for a request.

        Raises:
            RateLimited: The tenant exceeds a limit and is charged nothing. The headers contain the time to wait.
        """
        kinds = self._of(tenant).kinds(tokens)
        waits = [(bucket.seconds_until(amount), kind, bucket) for kind, bucket, amount in kinds]
        longest, kind, bucket = max(waits, key=lambda wait: wait[0], default=(0.0, "", None))
        if bucket is not None and longest > 0:
            retry = {"retry-after": str(min(MAX_RETRY_AFTER, ceil(longest)))}
            raise RateLimited(
                f"the rate limit is {bucket.per_minute} {kind} per minute; until it is answered, a request counts "
                "max_tokens for each candidate",
                headers=self.headers(tenant) | retry,
            )
        for _, bucket, amount in kinds:
            bucket.take(amount)

    def correct(self, charge: Charge, tokens: int) -> None:
        """Changes what a request is charged to `tokens`.

        The request was admitted within its limits, so this never refuses it; the following minutes pay for more tokens.
        """
        self.refund(charge.tenant, charge.tokens - tokens)
        charge.tokens = tokens

    def refund(self, tenant: str, tokens: int, *, request: bool = False) -> None:
        """Refunds tokens that were not generated and, with `request`, a request that was not answered."""
        for kind, bucket, amount in self._of(tenant).kinds(tokens):
            if kind == "tokens" or request:
                bucket.take(-amount)

    def headers(self, tenant: str) -> dict[str, str]:
        """Returns the `x-ratelimit-...` headers that OpenAI's clients read; none for a tenant without limits."""
        headers: dict[str, str] = {}
        for kind, bucket, _ in self._of(tenant).kinds(0):
            headers[f"x-ratelimit-limit-{kind}"] = str(bucket.per_minute)
            headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(bucket.level)))
            headers[f"x-ratelimit-reset-{kind}"] = f"{bucket.seconds_until(bucket.per_minute):.3f}s"
        return headers

    def _of(self, tenant: str) -> _Buckets:
        # The number of buckets is bounded, because only tenants that have a key get here.
        if tenant not in self._buckets:
            limits = self._tenants.get(tenant, self._default)
            buckets = [
                None if per_minute is None else Bucket(per_minute, self._clock)
                for per_minute in (limits.requests_per_minute, limits.tokens_per_minute)
            ]
            self._buckets[tenant] = _Buckets(*buckets)
        return self._buckets[tenant]
