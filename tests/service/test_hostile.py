"""Hostile requests against the running service: refused with a short error, and never a 5xx."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.long.fuzz import LONGEST_ERROR, fuzz_service
from tests.support.service.fake_service import BODY, CHAT, rows
from tests.support.service.forked_service import ForkedService

COMPLETIONS = "/v1/completions"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
MOST = 64 * 1024

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForkedService]:
    started = ForkedService(tmp_path_factory.mktemp("hostile"), service={"max_body_bytes": MOST})
    await started.start()
    yield started
    assert await started.stop() == 0, "it did not survive"


async def post(service: ForkedService, content: Any, path: str = CHAT, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=service.url, timeout=30.0) as client:
        return await client.post(path, content=content, headers={"content-type": "application/json"} | headers)


def nested(depth: int, inner: str = "1") -> bytes:
    return ("[" * depth + inner + "]" * depth).encode()


def in_chunks(content: bytes) -> AsyncIterator[bytes]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    return chunks()


@pytest.mark.parametrize(
    "content",
    [
        nested(30_000),
        b'{"messages": ' + nested(20_000) + b"}",
        b'{"model": "bonbon", "metadata": ' + b'{"a":' * 9000 + b"1" + b"}" * 9001,
        b'{"model": "bonbon", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"model": "\xc3\x28"}',
        b"\xff\xfe{\x00}\x00",
        b"",
        b"{",
        b"NaN",
        b'{"model": "bonbon", "messages": NaN}',
        b'{"model": 1e999}',
        b'"' + b"x" * 60_000 + b'"',
        b"1" * 5000,
        b'{"n": ' + b"9" * 5000 + b"}",
        b"\x00" * 100,
    ],
    ids=range(15),
)  # fmt: skip
@pytest.mark.parametrize("chunked", [False, True])
async def test_what_is_no_request_is_a_short_400(service: ForkedService, content: bytes, chunked: bool) -> None:
    response = await post(service, in_chunks(content) if chunked else content)
    assert response.status_code == 400, response.text
    assert len(response.content) <= LONGEST_ERROR
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("chunked", [False, True])
async def test_what_is_too_large_is_a_413(service: ForkedService, chunked: bool) -> None:
    content = nested(MOST)
    try:
        response = await post(service, in_chunks(content) if chunked else content)
    except httpx2.TransportError:
        return  # it hung up before the client had sent everything
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"n": 2**63}),
        (CHAT, {"n": 10**30}),
        (CHAT, {"n": 128, "best_of": 128}),
        (CHAT, {"best_of": 2**31}),
        (CHAT, {"best_of": -1}),
        (CHAT, {"max_tokens": 2**62}),
        (CHAT, {"max_tokens": 0}),
        (CHAT, {"stop": ["a"] * 1000}),
        (CHAT, {"stop": [""]}),
        (CHAT, {"stop": [["a"]]}),
        (CHAT, {"seed": 2**64}),
        (CHAT, {"temperature": 1e308}),
        (CHAT, {"temperature": -0.1}),
        (CHAT, {"top_p": 0}),
        (CHAT, {"logit_bias": {"50256": 1e9}}),
        (CHAT, {"logprobs": True, "top_logprobs": 10**9}),
        (CHAT, {"metadata": {str(i): "x" for i in range(17)}}),
        (CHAT, {"metadata": {"k": "x" * 513}}),
        (CHAT, {"user": "x" * 513}),
        (CHAT, {"model": "x" * 50_000}),
        (CHAT, {"model": "../../etc/passwd"}),
        (CHAT, {"x" * 10_000: 1}),
        (CHAT, {"messages": [{"role": "user", "content": "Hi", "x" * 10_000: 1}]}),
        (COMPLETIONS, {"prompt": [[2**40]]}),
        (COMPLETIONS, {"prompt": [[-1]]}),
        (COMPLETIONS, {"prompt": ["a"] * 65}),
        (COMPLETIONS, {"prompt": []}),
        (COMPLETIONS, {"logprobs": 6}),
    ],
)
async def test_a_value_out_of_bounds_is_refused(service: ForkedService, path: str, fields: dict[str, Any]) -> None:
    body = {"model": "bonbon"} | ({"messages": MESSAGES} if path == CHAT else {"prompt": "Hi"}) | fields
    response = await post(service, json.dumps(body), path)
    assert response.status_code in (400, 404), response.text
    assert len(response.content) <= LONGEST_ERROR


async def raw(service: ForkedService, *lines: bytes) -> bytes:
    """Returns the response to a request with these header lines."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"\r\n".join([*lines, b"connection: close", b"", b""]))
    await writer.drain()
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "name",
    [b"a\r\nset-cookie: x=1", b"a\nset-cookie: x=1", b"a\x00b", b"\x1b[31mred", b"a\x0bb", b"%0d%0aset-cookie: x",
     b"\xe2\x80\xa8"],
)  # fmt: skip
async def test_a_header_cannot_write_another_one(service: ForkedService, name: bytes) -> None:
    answer = await raw(service, b"GET /v1/models HTTP/1.1", b"host: x", b"x-request-id: " + name)
    head = answer.partition(b"\r\n\r\n")[0]
    assert b"set-cookie" not in head.lower()
    assert b"\x1b" not in head


async def test_a_path_or_a_method_that_is_none_is_refused(service: ForkedService) -> None:
    for line in (b"GET /../../etc/passwd HTTP/1.1", b"GET //v1//models HTTP/1.1", b"BREW /v1/models HTTP/1.1",
                 b"GET /v1/models/%2e%2e%2f%2e%2e%2fetc HTTP/1.1", b"GET /v1/models/" + b"a" * 30_000 + b" HTTP/1.1",
                 b"GET /v1/groups/%00 HTTP/1.1", b"\x16\x03\x01\x02\x00\x01\x00"):  # fmt: skip
        answer = await raw(service, line, b"host: x")
        assert answer == b"" or answer.split()[1].startswith(b"4"), answer[:200]


INJECTED = 'x"}\n{"event": "forged", "level": "error"}\r\n\x1b[2J\u2028\u202e'


async def test_nothing_that_is_sent_writes_a_line_of_the_log(service: ForkedService) -> None:
    """Each line of the log is one of our JSON objects, whatever user, model, metadata or path a request contained."""
    for fields in ({"user": INJECTED}, {"metadata": {"k": INJECTED}}, {"model": INJECTED}, {INJECTED: 1},
                   {"stop": [INJECTED]}, {"messages": [{"role": "user", "content": INJECTED}]}):  # fmt: skip
        response = await post(service, json.dumps(BODY | fields), **{"user-agent": "x\ty"})
        assert response.status_code in (200, 400, 404)
    for line in (service.directory / "service.log").read_text().splitlines():
        assert json.loads(line)["event"] != "forged"
        assert "\x1b" not in line
    (stored,) = rows(service.directory, "SELECT end_user FROM groups WHERE end_user != ''")
    assert stored[0] == INJECTED


async def test_requests_made_up_from_the_description_never_fail_it(tmp_path: Path) -> None:
    """`make fuzz` sends more than ten thousand."""
    statuses = await fuzz_service(tmp_path, 250)
    assert statuses[200] > 10
    assert statuses[400] > 10
