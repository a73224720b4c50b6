"""Fixtures of the tests with the official openai client."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.service.api import Server, openai_client


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """A client of the service that the test module's own `server` fixture runs."""
    with openai_client(server) as opened:
        yield opened
