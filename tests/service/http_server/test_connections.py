"""Clients that open connections and send or read little delay only themselves."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from bonbon.demo.service_process import ServiceProcess
from service.http_server.connections import SPARE
from tests.support.service.fake_service import BODY, CHAT, fake_service, rows
from tests.support.service.forked_service import ForkedService
from tests.support.service.raw_http import answer_of, connections, request
from tests.support.service.service_metrics import metric

UNFINISHED_HEAD = b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\nx-padding: " + b"x" * 1000
UNFINISHED_BODY = request(CHAT, BODY)[:-1]
LARGE_HEAD = b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x-padding: " + b"x" * 30_000
LARGE_BODY = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 4000000\r\n\r\n%s" % (
    CHAT.encode(),
    b" " * 300_000,
)

Service = ForkedService | ServiceProcess


@asynccontextmanager
async def started(directory: Path, **settings: object) -> AsyncIterator[ForkedService]:
    service = ForkedService(directory, service=settings)
    await service.start()
    try:
        yield service
    finally:
        assert await service.stop() == 0


async def assert_answers(service: Service) -> None:
    """Checks that a health check and an ordinary request succeed on new connections."""
    async with asyncio.timeout(60):
        for method, path, body in (
            ("GET", "/health/ready", None),
            ("POST", CHAT, BODY),
            ("GET", "/admin/aliases", None),
        ):
            async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
                response = await client.request(method, path, json=body)
                assert response.status_code == 200, (path, response.text)


def memory(service: ServiceProcess) -> float:
    """Returns the memory of the process in MiB."""
    assert service.process is not None
    return psutil.Process(service.process.pid).memory_info().rss / 2**20


@contextmanager
def soft_limit(files: int) -> Iterator[None]:
    """Lowers this process's limit of open files, which the service inherits, as from a shell."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("sent", "most", "grows"),
    [
        (UNFINISHED_HEAD, 2048, 40),
        (UNFINISHED_HEAD, 200, 40),
        (UNFINISHED_BODY, 2048, 60),
        (UNFINISHED_BODY, 200, 40),
        (LARGE_HEAD, 2048, 80),
        (LARGE_BODY, 2048, 200),
    ],
    ids=["heads", "heads, not all fit", "bodies", "bodies, not all fit", "large heads", "large bodies"],
)
async def test_connections_with_unfinished_requests_shut_nobody_out(
    tmp_path: Path, sent: bytes, most: int, grows: int
) -> None:
    """The process starts with the usual limit of 1,024 open files; the large bodies have 330 MB together.

    `grows` is the maximum growth of memory in MiB.
    """
    service = fake_service(tmp_path, max_connections=most, header_timeout=600, body_timeout=600)
    with soft_limit(1024):
        await service.start()
    await assert_answers(service)
    before = memory(service)
    async with connections(service.port, 1100, sent):
        await assert_answers(service)
        assert await metric(service, "bonbon_connections") <= most + SPARE
    assert memory(service) - before < grows
    await assert_answers(service)
    await service.stop()


LIMITED = """
import resource
from service.http_server.file_descriptors import raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(raise_file_limit(1000, 64), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "made"),
    [(256, 4096, "1000 1576 4096"), (4096, 4096, "1000 4096 4096"), (256, 800, "224 800 800"), (64, 128, "32 128 128")],
)
def test_the_soft_limit_of_open_files_is_raised_as_far_as_it_goes(soft: int, hard: int, made: str) -> None:
    code = LIMITED.format(soft=soft, hard=hard)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.splitlines()[-1] == made
    assert ("ulimit -Hn" in answer) == (not made.startswith("1000"))


async def test_who_sends_too_slowly_is_told_and_let_go(tmp_path: Path) -> None:
    """The clients send unfinished headers, an unfinished body, a body byte by byte, and nothing at all."""
    trickle = b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" % CHAT.encode()
    async with started(tmp_path, header_timeout=1, body_timeout=1) as service:
        async with connections(service.port, 2, UNFINISHED_HEAD) as heads:
            for reader in heads:
                assert_refused(await answer_of(reader), 408, "header_timeout")
        async with connections(service.port, 2, UNFINISHED_BODY) as bodies:
            for reader in bodies:
                assert_refused(await answer_of(reader), 408, "body_timeout")
        async with connections(service.port, 2, b"") as silent:
            assert [await answer_of(reader) for reader in silent] == [b"", b""]
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(trickle)
        while not reader.at_eof() and not writer.is_closing():
            writer.write(b"1\r\n \r\n")
            try:
                async with asyncio.timeout(0.1):
                    assert_refused(await reader.read(), 408, "body_timeout")
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        writer.close()
        assert await metric(service, 'bonbon_connections_closed_total{reason="body_timeout"}') == 3
        assert await metric(service, "bonbon_connections") == 1, "the one that asks"


async def test_while_the_service_stands_still_nobody_is_late(tmp_path: Path) -> None:
    async with started(tmp_path, header_timeout=2, body_timeout=2, send_timeout=2) as service:
        sent = [request(CHAT, BODY, "connection: close"), request("/health/live", None, "connection: close")]
        for _ in range(3):
            opened = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(20)]
            for number, (_, writer) in enumerate(opened):
                writer.write(sent[number % 2][:-20])
            await until_connections(service, 21)
            os.kill(service.pid, signal.SIGSTOP)
            for number, (_, writer) in enumerate(opened):
                writer.write(sent[number % 2][-20:])
            await asyncio.sleep(3)
            os.kill(service.pid, signal.SIGCONT)
            for reader, writer in opened:
                assert (await answer_of(reader)).startswith(b"HTTP/1.1 200")
                writer.close()


async def until_connections(service: ForkedService, count: int) -> None:
    async with asyncio.timeout(60):
        while await metric(service, "bonbon_connections") != count:
            await asyncio.sleep(0.02)


async def test_a_request_that_takes_long_to_answer_is_not_taken_for_a_slow_client(tmp_path: Path) -> None:
    service = ForkedService(
        tmp_path, engine_options={"delay": 0.6}, service={"header_timeout": 1, "body_timeout": 1, "send_timeout": 1}
    )
    await service.start()
    body = {"model": "base", "prompt": "Hi", "temperature": 0}  # five tokens: three seconds
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        whole, streamed = await asyncio.gather(
            *(client.post("/v1/completions", json=body | {"stream": stream}) for stream in (False, True))
        )
    assert whole.json()["usage"]["completion_tokens"] == 5
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert await service.stop() == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-padding: " + b"x" * 200_000,
        b"GET /health/live HTTP/1.1\r\nhost: x\r\n" + b"x-padding: x\r\n" * 20_000,
        b"GET /health/live?" + b"x" * 200_000,
    ],
    ids=["one header", "many headers", "a path"],
)
async def test_a_head_that_is_too_large_is_refused_before_it_is_whole(tmp_path: Path, sent: bytes) -> None:
    async with started(tmp_path) as service, connections(service.port, 1, sent) as (reader,):
        answer = await answer_of(reader)
        assert not answer or answer.startswith(b"HTTP/1.1 431")
        assert await metric(service, 'bonbon_connections_closed_total{reason="header_too_large"}') == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"1;" + b"x" * 300_000,
        b"1\r\nx\r\n0\r\nx-trailer: " + b"x" * 300_000,
        b"1\r\nx\r\n0\r\n" + b"x-trailer: x\r\n" * 30_000,
    ],
    ids=["an extension of a chunk", "a trailer", "many trailers"],
)
async def test_what_is_around_a_chunked_body_is_limited_too(tmp_path: Path, sent: bytes) -> None:
    head = b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" % CHAT.encode()
    async with started(tmp_path) as service, connections(service.port, 1, head + sent) as (reader,):
        answer = await answer_of(reader)
        assert not answer or answer.startswith(b"HTTP/1.1 4")
        assert await metric(service, 'bonbon_connections_closed_total{reason="request_too_large"}') == 1


async def test_who_asks_to_speak_something_else_is_answered_in_http(tmp_path: Path) -> None:
    upgrade = request("/health/live", None, "connection: Upgrade, close", "upgrade: websocket", "sec-websocket-key: x")
    async with started(tmp_path) as service, connections(service.port, 1, upgrade) as (reader,):
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 200 OK")
    assert (tmp_path / "service.log").read_text().count("Unsupported upgrade") == 0


@pytest.mark.parametrize("behind", [request(CHAT, BODY) * 3, request(CHAT, BODY)[:-1]], ids=["whole", "not whole"])
async def test_who_hangs_up_with_requests_behind_the_one_that_is_answered_ends_them_all(
    tmp_path: Path, behind: bytes
) -> None:
    service = ForkedService(tmp_path, engine_options={"delay": 0.5})
    await service.start()
    async with connections(service.port, 4, request(CHAT, BODY) + behind):
        while not await metric(service, "bonbon_tokens_in_flight"):
            await asyncio.sleep(0.02)
    async with asyncio.timeout(60):
        while await metric(service, "bonbon_tokens_in_flight"):
            await asyncio.sleep(0.02)
    assert await service.stop() == 0
    assert rows(tmp_path, "SELECT count(*) FROM groups") == [(0,)]
    told = (tmp_path / "service.log").read_text()
    assert "ASGI" not in told
    assert "unexpected" not in told


H2C = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__"
"""Headers that Java's HTTP client sends with the first request of each connection unless restricted to HTTP/1.1."""


@pytest.mark.parametrize("pieces", [1, 2, 40], ids=["at once", "in halves", "in small pieces"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
async def test_a_body_is_read_whatever_else_its_client_would_like_to_speak(
    tmp_path: Path, pieces: int, chunked: bool
) -> None:
    body = json.dumps(BODY).encode()
    if chunked:
        head = request(CHAT, None, H2C).replace(b"GET", b"POST", 1)
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        posted = head[:-2] + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n" + framed
    else:
        posted = request(CHAT, BODY, H2C)
    sent = posted + request("/health/live", None, H2C) + request("/v1/models", None, "connection: close")
    async with started(tmp_path) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        size = -(-len(sent) // pieces)
        for start in range(0, len(sent), size):
            writer.write(sent[start : start + size])
            await asyncio.sleep(0.01 if pieces > 1 else 0)
        answer = await answer_of(reader)
        writer.close()
    assert answer.count(b"HTTP/1.1 200 OK") == 3, answer
    assert answer.count(b"HTTP/1.1 ") == 3


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 200,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"GET /health/live HTTP/1.1\nhost: x\n\n",
        b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "two framings", "two lengths", "no carriage returns", "a tunnel"],
)
async def test_what_is_no_http_request_is_told_so(tmp_path: Path, sent: bytes) -> None:
    async with started(tmp_path) as service, connections(service.port, 1, sent) as (reader,):
        assert_refused(await answer_of(reader), 400, "invalid_request")


async def test_nothing_is_read_of_who_has_no_key(tmp_path: Path) -> None:
    async with started(tmp_path, api_key="s3cret") as service:
        for path in (CHAT, "/v1/feedback"):
            async with connections(service.port, 1, request(path, BODY)[:-1]) as (reader,):
                async with asyncio.timeout(60):
                    assert (await reader.readline()).startswith(b"HTTP/1.1 401")


async def test_when_every_connection_is_busy_health_and_the_operator_are_answered(tmp_path: Path) -> None:
    limits = {"max_connections": 4, "max_connections_per_client": 4}
    service = ForkedService(tmp_path, engine_options={"delay": 1.0}, service=limits)
    await service.start()
    stream = BODY | {"max_tokens": 100, "best_of": 32, "stream": True}
    async with connections(service.port, 4, request(CHAT, stream)) as busy:
        for reader in busy:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
            for path in ("/health/ready", "/metrics", "/admin/aliases", "/console/"):
                assert (await client.get(path)).status_code == 200
            refused = await client.post(CHAT, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"]
        assert await metric(service, "bonbon_tokens_in_flight") == 4 * 32 * 100, "a busy connection gave way"
    async with asyncio.timeout(60):
        while await metric(service, "bonbon_tokens_in_flight"):
            await asyncio.sleep(0.05)
    async with httpx2.AsyncClient(base_url=service.url, timeout=60.0) as client:
        assert (await client.post(CHAT, json=BODY | {"max_tokens": 1})).status_code == 200
    assert await service.stop() == 0


async def test_one_client_has_no_more_than_its_share(tmp_path: Path) -> None:
    async with (
        started(tmp_path, max_connections_per_client=10) as service,
        connections(service.port, 50, UNFINISHED_HEAD),
    ):
        assert await metric(service, "bonbon_connections") <= 10
        await assert_answers(service)


async def test_unfinished_requests_do_not_delay_the_end(tmp_path: Path) -> None:
    service = ForkedService(tmp_path, service={"header_timeout": 600, "body_timeout": 600, "drain_timeout": 600})
    await service.start()
    async with connections(service.port, 3, UNFINISHED_HEAD), connections(service.port, 3, UNFINISHED_BODY):
        assert await metric(service, "bonbon_connections") == 7
        async with asyncio.timeout(60):
            assert await service.stop() == 0


def assert_refused(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert json.loads(body)["error"]["code"] == code
