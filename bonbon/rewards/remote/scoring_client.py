"""JSON over HTTP to a scoring service, with pooled connections, limits, retries and a circuit breaker."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EACCES
from ipaddress import IPv6Address, ip_address
from socket import SOCK_STREAM
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import stamina
from pydantic import Field, SecretStr, field_validator

from bonbon.errors import RewardError, RewardNotStarted, UserError
from bonbon.http.circuit_breaker import CircuitBreaker, CircuitOpen
from bonbon.http.endpoint import bearer_token, check_url
from bonbon.http.http_session import TooLong, open_session, read
from bonbon.rewards.reward_options import Options

AWS_METADATA_V6 = ip_address("fd00:ec2::254")


class HttpOptions(Options):
    """A scoring service and how to reach it."""

    target: str
    """The URL of the service."""
    timeout: float = Field(10.0, gt=0)
    """The seconds that one attempt may take, from connecting to the last byte. An attempt that times out is not
    repeated."""
    attempts: int = Field(3, ge=1)
    """The maximum number of attempts. Connection errors, 5xx and 429 are retried with growing delays, or after
    `retry-after`."""
    connections: int = Field(64, ge=1)
    """The maximum number of concurrent connections."""
    max_response_bytes: int = Field(1_048_576, ge=1)
    """The maximum size of an answer in bytes; a longer one is an error."""
    api_key: SecretStr | None = None
    """The API key, sent as a bearer token."""
    api_key_env: str | None = None
    """The name of the environment variable that contains the API key; a variable of this name with the suffix _FILE
    names a file instead."""
    breaker_failures: int = Field(5, ge=1)
    """The number of consecutive failed calls after which the service gets no more calls for a while."""
    breaker_cool_down: float = Field(10.0, gt=0)
    """The seconds that the service gets no calls, before a single probe."""
    allow_link_local: bool = False
    """Whether to allow link-local addresses, where clouds serve the credentials of their machines."""

    @field_validator("target")
    @classmethod
    def _check_url(cls, value: str) -> str:
        return check_url(value)

    @property
    def bearer(self) -> str | None:
        """Returns the bearer token. Raises UserError when its environment variable is not set."""
        return bearer_token(self.api_key, self.api_key_env, option="api_key_env", param="reward")


class Unavailable(RewardError):
    """Raised when the service did not answer or is unavailable, which the circuit breaker counts as a failure.

    Args:
        message: What happened.
        retry: The seconds to wait before another attempt, True for the usual delay, False when retrying makes no sense.
    """

    def __init__(self, message: str, *, retry: bool | float = False) -> None:
        super().__init__(message)
        self.retry = retry


class Refused(RewardError):
    """Raised when the service refuses the request.

    Args:
        message: What the service answered, shortened.
        content: The whole answer.
    """

    def __init__(self, message: str, content: bytes) -> None:
        super().__init__(message)
        self.content = content


class HttpClient:
    """Sends JSON requests to paths below one URL.

    Args:
        options: How to reach the service.
        breaker: The circuit breaker; by default one made from the options.
    """

    def __init__(self, options: HttpOptions, *, breaker: CircuitBreaker | None = None) -> None:
        self.options = options
        self.breaker = breaker or CircuitBreaker(failures=options.breaker_failures, cool_down=options.breaker_cool_down)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Opens the connection pool. Raises UserError for a forbidden address or a missing token."""
        options = self.options
        if not options.allow_link_local:
            await _check_target(options.target)
        self._session = open_session(
            bearer=options.bearer,
            connections=options.connections,
            proxies=True,
            refuse=None if options.allow_link_local else _refuse_link_local,
        )

    async def stop(self) -> None:
        if self._session:
            await self._session.close()
        self._session = None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Wraps all posts of one score, which the breaker counts as one call. Raises RewardError when it is open."""
        try:
            with self.breaker.guard(Unavailable):
                yield
        except CircuitOpen as error:
            raise RewardError(f"{self.options.target}: {error}") from error

    async def post(self, body: object, path: str = "") -> Any:
        """Returns the JSON of the answer.

        Raises Refused when the service refuses the request, and RewardError for any other failure.
        """
        return await self._request("POST", body, path)

    async def get(self, path: str) -> Any:
        """Sends a GET request; otherwise like `post`."""
        return await self._request("GET", None, path)

    async def _request(self, method: str, body: object, path: str) -> Any:
        url = self.options.target.rstrip("/") + path if path else self.options.target
        async for attempt in stamina.retry_context(
            on=lambda error: error.retry if isinstance(error, Unavailable) else False,
            attempts=self.options.attempts,
            timeout=None,
            wait_initial=0.1,
            wait_max=2.0,
            wait_jitter=0.1,
        ):
            with attempt:
                answer = await self._attempt(method, url, body)
        return answer

    async def _attempt(self, method: str, url: str, body: object) -> Any:
        address = _without_query(url)
        try:
            async with asyncio.timeout(self.options.timeout):
                status, headers, content = await self._exchange(method, url, body)
        except TimeoutError as error:
            raise Unavailable(f"{address} did not answer within {self.options.timeout:g} s") from error
        except aiohttp.ClientError as error:
            raise Unavailable(f"{address}: {type(error).__name__}: {error}", retry=True) from error
        if status == 429 or status >= 500:
            raise Unavailable(f"{address} answered {status}: {_shown(content)}", retry=self._pause(headers))
        if status != 200:
            raise Refused(f"{address} answered {status}: {_shown(content)}", content)
        try:
            return json.loads(content)
        except ValueError as error:
            raise RewardError(f"{address} did not answer with JSON: {_shown(content)}") from error

    async def _exchange(self, method: str, url: str, body: object) -> tuple[int, Mapping[str, str], bytes]:
        if self._session is None:
            raise RewardNotStarted(f"the reward at {_without_query(url)}")
        data = None if body is None else json.dumps(body).encode()
        response = await self._session.request(method, url, data=data, allow_redirects=False)
        limit = self.options.max_response_bytes
        try:
            return response.status, response.headers, await read(response, limit)
        except TooLong as error:
            raise RewardError(f"{_without_query(url)} answered with more than {limit} bytes") from error

    def _pause(self, headers: Mapping[str, str]) -> bool | float:
        """Returns the seconds in `retry-after`, True without it, or False when they exceed an attempt's own timeout."""
        delay = headers.get("retry-after", "")
        if not delay.isdecimal():
            return True
        return float(delay) if float(delay) <= self.options.timeout else False


async def _check_target(target: str) -> None:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(urlsplit(target).hostname, None, type=SOCK_STREAM)
    except OSError:
        return  # The name cannot be resolved now; if it never can, every attempt reports that.
    for *_, (host, *_rest) in found:
        try:
            _refuse_link_local(str(host))
        except PermissionError as error:
            raise UserError(f"reward target {target!r} is {error.strerror}", param="reward") from error


def _refuse_link_local(host: str) -> None:
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_link_local or address == AWS_METADATA_V6:
        raise PermissionError(
            EACCES,
            f"the link-local address {address}, where clouds serve credentials; set allow_link_local = true if that "
            "is intended",
        )


def _without_query(url: str) -> str:
    """Returns the URL without its query, which may be a token, for messages that anybody may read."""
    return url.partition("?")[0]


def _shown(content: bytes) -> str:
    return repr(content[:200].decode(errors="replace"))
