"""HTTP to one vLLM server: pooled, bounded, and closed at once when nobody waits any more."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import aiohttp
import orjson

from bonbon.engines.remote.protocol_errors import Elsewhere, refusal
from bonbon.errors import EngineError
from bonbon.http.http_session import TooLong, open_session, read

EVENT = b"data: "


class Server:
    """Requests to one server.

    Args:
        url: without a path.
        bearer: the key it wants, if any.
        connections: most at once.
        connect_timeout: seconds.
        max_bytes: a longer answer, or event of a stream, is an error.
    """

    def __init__(
        self, url: str, *, bearer: str | None, connections: int, connect_timeout: float, max_bytes: int
    ) -> None:
        self.url, self._max_bytes = url, max_bytes
        self._session = open_session(bearer=bearer, connections=connections, connect_timeout=connect_timeout)

    async def close(self) -> None:
        await self._session.close()

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float
    ) -> tuple[int, bytes]:
        """Status and body. Raises Elsewhere when there is no answer within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                response = await self._send(method, path, body)
                return response.status, await self._read(response)
        except aiohttp.ClientError as error:
            raise _lost(error) from error
        except TimeoutError as error:
            raise Elsewhere(f"{path} was not answered within {seconds:g} s") from error

    async def answers(self, path: str, body: Mapping[str, Any], until: float) -> AsyncGenerator[Mapping[str, Any]]:
        """The answer to a draw or, where `body` asks for a stream, its events.

        Closing the generator closes the connection, by which the server sees that nobody waits.

        Args:
            until: when the answer must be complete, on the event loop's clock.

        Raises:
            Elsewhere, UserError, EngineError: see `refusal`; EngineError when `until` has come.
        """
        response = None
        try:
            async with asyncio.timeout_at(until):
                response = await self._send("POST", path, body)
                if response.status != 200:
                    raise refusal(response.status, await self._read(response))
                if not body["stream"]:
                    answer = _json(await self._read(response))
            if not body["stream"]:
                yield answer
                return
            lines = self._lines(response)
            while True:
                async with asyncio.timeout_at(until):
                    line = await anext(lines, None)
                if line is None or line == EVENT + b"[DONE]":
                    return
                if line.startswith(EVENT):
                    event = _json(line.removeprefix(EVENT))
                    if "error" in event:
                        raise refusal(_status(event), line.removeprefix(EVENT))
                    yield event
        except aiohttp.ClientError as error:  # before TimeoutError: a late connection is both
            raise _lost(error) from error
        except TimeoutError as error:
            raise EngineError("the fleet did not answer in time") from error
        finally:
            if response is not None:
                response.close()

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> aiohttp.ClientResponse:
        data = None if body is None else orjson.dumps(body)
        return await self._session.request(method, self.url + path, data=data, allow_redirects=False)

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        """Lines as events have them: other line ends than a line feed may stand inside of a JSON string."""
        rest = bytearray()
        async for chunk in response.content.iter_any():
            *lines, last = chunk.split(b"\n")
            for line in lines:
                yield bytes(rest + line).removesuffix(b"\r")
                rest.clear()
            rest += last
            if len(rest) > self._max_bytes:
                raise EngineError("a server of the fleet sent an event that is too long")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await read(response, self._max_bytes)
        except TooLong as error:
            raise EngineError(f"a server of the fleet answered more than {self._max_bytes} bytes") from error


def _lost(error: aiohttp.ClientError) -> Elsewhere:
    down = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    return Elsewhere(f"a server of the fleet was lost ({type(error).__name__})", down=down)


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(content)
    except ValueError as error:
        raise Elsewhere("a server of the fleet answered no JSON") from error
    if not isinstance(value, dict):
        raise Elsewhere("a server of the fleet answered no JSON object")
    return value


def _status(event: Mapping[str, Any]) -> int:
    error = event["error"]
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500
