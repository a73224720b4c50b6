"""HTTP to one vLLM server, with pooled connections and limits; a connection is closed when its caller stops waiting."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import aiohttp
import orjson

from bonbon.engines.remote.protocol_errors import ServerFailed, refusal
from bonbon.errors import EngineError
from bonbon.http.http_session import TooLong, open_session, read

EVENT = b"data: "


class Server:
    """Sends requests to one server.

    Args:
        url: The URL without a path.
        bearer: The server's API key, if it needs one.
        connections: The maximum number of concurrent connections.
        connect_timeout: The seconds that connecting may take.
        max_bytes: The maximum size of an answer, or of an event of a stream; a longer one is an error.
    """

    def __init__(
        self, url: str, *, bearer: str | None, connections: int, connect_timeout: float, max_bytes: int
    ) -> None:
        self.url, self._max_bytes = url, max_bytes
        self._session = open_session(bearer=bearer, connections=connections, connect_timeout=connect_timeout)

    async def close(self) -> None:
        await self._session.close()

    async def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float
    ) -> tuple[int, bytes]:
        """Returns the status and the body of an answer. Raises ServerFailed when none arrives within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                response = await self._send(method, path, body)
                return response.status, await self._read(response)
        except aiohttp.ClientError as error:
            raise _lost(error) from error
        except TimeoutError as error:
            raise ServerFailed(f"{path} was not answered within {seconds:g} s") from error

    async def answers(self, path: str, body: Mapping[str, Any], until: float) -> AsyncGenerator[Mapping[str, Any]]:
        """Yields the answer to a request or, where `body` sets `stream`, its events.

        Closing the generator closes the connection, which makes the server abort the request.

        Args:
            until: When the answer must be complete, on the event loop's clock.

        Raises:
            ServerFailed, UserError, EngineError: The server refused the request, see `refusal`, or `until` has passed.
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
        except aiohttp.ClientError as error:  # Before TimeoutError, because a connection timeout is both.
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
        """Yields the lines of an event stream, split only at line feeds because JSON strings may contain other line
        ends."""
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
            raise EngineError(f"a server of the fleet answered with more than {self._max_bytes} bytes") from error


def _lost(error: aiohttp.ClientError) -> ServerFailed:
    down = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    return ServerFailed(f"the connection to a server of the fleet failed ({type(error).__name__})", down=down)


def _json(content: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(content)
    except ValueError as error:
        raise ServerFailed("a server of the fleet did not answer with JSON") from error
    if not isinstance(value, dict):
        raise ServerFailed("a server of the fleet did not answer with a JSON object")
    return value


def _status(event: Mapping[str, Any]) -> int:
    error = event["error"]
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500
