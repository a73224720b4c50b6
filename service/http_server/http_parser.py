"""Parses HTTP for a server that supports no other protocol."""

from typing import Any

import httptools

FRAMING = (b"content-length", b"transfer-encoding")
"""Headers that determine where a body ends."""


class HttpParser:
    """An `httptools.HttpRequestParser` that ignores the Upgrade header, as RFC 9110, section 7.8, permits.

    After the headers of such a request, httptools takes the following bytes for another protocol. A server that stays
    with HTTP must read them as the request's body and the next request, so a second parser continues there.

    Args:
        protocol: An object with httptools' callbacks.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._framing: list[bytes] = []
        self._head_is_known = False
        self.on_body = protocol.on_body
        self._parser = self._new()

    def _new(self) -> Any:
        parser = httptools.HttpRequestParser(self)
        # As in uvicorn, data after the last request of a connection is not an error of that request.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def close(self) -> None:
        """Breaks the reference cycle of parser and callbacks, which would otherwise last until the next full garbage
        collection."""
        self._parser = None

    # called by uvicorn

    def feed_data(self, data: bytes) -> None:
        """Parses received data.

        Raises:
            httptools.HttpParserError: The data is not valid HTTP.
        """
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._begin_body()
            else:
                return

    def get_http_version(self) -> str:
        version: str = self._parser.get_http_version()
        return version

    def get_method(self) -> bytes:
        method: bytes = self._parser.get_method()
        return method

    def should_keep_alive(self) -> bool:
        return bool(self._parser.should_keep_alive())

    def should_upgrade(self) -> bool:
        return False

    # called by httptools

    def on_message_begin(self) -> None:
        if not self._head_is_known:
            self._framing = []
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._head_is_known:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_is_known:
            return
        if name.lower() in FRAMING:
            self._framing.append(b"%b: %b\r\n" % (name, value))
        self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._head_is_known:
            self._protocol.on_headers_complete()

    def on_message_complete(self) -> None:
        if not (self._parser.should_upgrade() and self._framing):  # otherwise its body is still to come
            self._protocol.on_message_complete()

    def _begin_body(self) -> None:
        """Continues after the headers with a new parser, which gets the headers that determine where the body ends."""
        if self._framing:
            self._parser = self._new()
            self._head_is_known = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(self._framing))
            self._head_is_known = False
