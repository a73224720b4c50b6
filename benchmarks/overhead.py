"""Measures the overhead of a gateway for best-of-8: bonbon, LiteLLM's proxy and its_hub in front of a mock upstream.

python -m venv litellm && litellm/bin/pip install 'litellm[proxy]'
python -m venv its_hub && its_hub/bin/pip install 'its_hub[iaas]'
python benchmarks/overhead.py --litellm litellm/bin --its-hub its_hub/bin

The upstream (benchmarks/upstream.py) takes almost no time, so the benchmark measures the gateway. bonbon draws 8
candidates with their token ids and log-probabilities, scores and ranks them, and commits the group to disk before it
answers; the other gateways neither score nor rank nor commit. Each gateway is one process on one core, and the upstream
and the load generator use another core. The gateways take turns, so that other load on the machine affects all of them
alike and the ratios are more reliable than the times.
"""

import asyncio
import json
import os
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import httpx2
import psutil
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

N, MODEL = 8, "base"
KEY = f"sk-{secrets.token_hex(24)}"  # LiteLLM refuses to start with a weak key
MESSAGES = [{"role": "user", "content": "My lamp arrived broken. Can you help?"}]
START_TIMEOUT, PROFILE_SECONDS = 180.0, 15


class Server(NamedTuple):
    """A started process and the port it listens on."""

    port: int
    process: int


@dataclass
class Target:
    """A server that answers chat completions, with its measurements.

    They are the seconds of each request at concurrency 1, and the requests per second and seconds of CPU time per
    request at concurrency 8.
    """

    name: str
    server: "Server"
    body: bytes
    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @property
    def request(self) -> bytes:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        return f"{head}authorization: Bearer {KEY}\r\ncontent-length: {len(self.body)}\r\n\r\n".encode() + self.body

    def processor_seconds(self) -> float:
        """CPU seconds that its process has used so far, which other load on the machine does not affect."""
        times = psutil.Process(self.server.process).cpu_times()
        return float(times.user + times.system)


class Connection:
    """A persistent HTTP/1.1 connection, written by hand so that the load generator costs less than the gateway."""

    def __init__(self, target: Target) -> None:
        self.target, self.request = target, target.request

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.target.server.port, limit=2**22)

    async def ask(self) -> float:
        """Returns the seconds that one request took. Raises RuntimeError for any status but 200."""
        start = perf_counter()
        self.writer.write(self.request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        if b"transfer-encoding: chunked" in head:
            while size := int(await self.reader.readline(), 16):
                await self.reader.readexactly(size + 2)
            await self.reader.readexactly(2)
            body = b""
        else:
            body = await self.reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        seconds = perf_counter() - start
        if b" 200 " not in head[:20]:
            raise RuntimeError(f"{self.target.name}: {head[:60]!r} {body[:300]!r}")
        return seconds


def main(
    litellm: Path = typer.Option(None, help="bin directory of an environment with litellm[proxy]."),
    its_hub: Path = typer.Option(None, help="bin directory of an environment with its_hub[iaas]."),
    turns: int = typer.Option(20, help="Number of turns; in each, every gateway gets its requests."),
    requests: int = typer.Option(50, help="Requests per turn at concurrency 1, and twice as many at 8."),
    database: str = typer.Option(None, help="SQLAlchemy URL of bonbon's pair log (default: a new SQLite file)."),
    json_: Path = typer.Option(None, "--json", help="Write the figures to this file."),
    profile: Path = typer.Option(
        None,
        help="Afterwards put load on bonbon alone and write its stacks to this file with py-spy (must be on the PATH).",
    ),
) -> None:
    """Print each gateway's overhead over the upstream's latency, and its requests per second on one core."""
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        _pin(0)

        def start(name: str, command: list[str], **options: Any) -> Server:
            return stack.enter_context(start_process(Path(work), name, command, **options))

        upstream = start("upstream", [sys.executable, str(Path(__file__).parent / "upstream.py")], core=0)
        url = f"http://127.0.0.1:{upstream.port}"
        targets = [Target("upstream alone", upstream, _body(n=N))]
        data = Path(work) / "bonbon"
        environment = {
            "BONBON_MODEL": MODEL,
            "BONBON_ENGINE": "remote",
            "BONBON_ENGINE_OPTIONS": json.dumps({"urls": url}),
            "BONBON_REWARD": "fake:",
            "BONBON_N": str(N),
            "BONBON_DATA_DIR": str(data),
        } | ({"BONBON_DATABASE_URL": database} if database else {})
        serve = [sys.executable, "-m", "bonbon", "serve", "--port"]
        bonbon = start("bonbon", serve, environment=environment, ready="/health/ready")
        targets.append(Target("bonbon", bonbon, _body(model="bonbon")))
        if litellm:
            targets.append(Target("LiteLLM", _litellm(start, litellm, Path(work), url), _body(n=N)))
        if its_hub:
            targets.append(Target("its_hub", _its_hub(start, its_hub, url), _body(budget=N)))
        asyncio.run(_measure(targets, turns, requests))
        figures = _figures(targets)
        _show(figures)
        if json_:
            json_.write_text(json.dumps(figures, indent=2) + "\n")
        if profile:
            asyncio.run(_profile(targets[1], profile))


async def _measure(targets: list[Target], turns: int, requests: int) -> None:
    connections = {target.name: [Connection(target) for _ in range(8)] for target in targets}
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task("requests", total=turns * len(targets))
        for turn in range(turns + 1):
            for target in random.sample(targets, len(targets)):
                # Reconnects each turn, because a gateway may close connections that were idle during the others' turns.
                for connection in connections[target.name]:
                    await connection.open()
                seconds = [await connections[target.name][0].ask() for _ in range(requests)]
                start, processor, asked = perf_counter(), target.processor_seconds(), 8 * (requests // 4)
                await asyncio.gather(*(_ask(c, requests // 4) for c in connections[target.name]))
                rate = asked / (perf_counter() - start)
                processor = (target.processor_seconds() - processor) / asked
                for connection in connections[target.name]:
                    connection.writer.close()
                if turn:  # the first turn warms up
                    target.seconds += seconds
                    target.rates.append(rate)
                    target.processor.append(processor)
                    bars.advance(bar)


async def _profile(target: Target, file: Path) -> None:
    """Samples stacks while eight clients send requests without pause: `a;b;c count`, one per line."""
    connections = [Connection(target) for _ in range(8)]
    for connection in connections:
        await connection.open()
    command = ["py-spy", "record", "--pid", str(target.server.process), "--duration", str(PROFILE_SECONDS)]
    spy = subprocess.Popen([*command, "--rate", "250", "--threads", "--format", "raw", "--output", str(file)])
    while spy.poll() is None:
        await asyncio.gather(*(_ask(connection, 10) for connection in connections))


async def _ask(connection: Connection, requests: int) -> None:
    for _ in range(requests):
        await connection.ask()


def _figures(targets: list[Target]) -> dict[str, dict[str, float]]:
    """Returns figures in ms and requests per second. The overhead is a difference of quantiles, paired by turns."""
    alone = targets[0]
    figures = {}
    for target in targets:
        p50, p99 = (1000 * statistics.quantiles(target.seconds, n=100)[q - 1] for q in (50, 99))
        base50, base99 = (1000 * statistics.quantiles(alone.seconds, n=100)[q - 1] for q in (50, 99))
        figures[target.name] = {
            "p50_ms": p50,
            "p99_ms": p99,
            "added_p50_ms": p50 - base50,
            "added_p99_ms": p99 - base99,
            "requests_per_second_at_1": 1 / statistics.mean(target.seconds),
            "requests_per_second_at_8": statistics.median(target.rates),
            "processor_ms": 1000 * statistics.mean(target.processor),
        }
    return figures


def _show(figures: dict[str, dict[str, float]]) -> None:
    """Prints a table with a column per gateway, which 80 columns have room for."""
    table = Table(title=f"best-of-{N}, times in ms", title_justify="left")
    for name in ("", *figures):
        table.add_column(name, justify="right" if name else "left")
    for title, key, digits, against_bonbon in ROWS:
        table.add_row(title, *(f"{figure[key]:.{digits}f}" for figure in figures.values()))
        if against_bonbon:
            ours = figures["bonbon"][key]
            table.add_row("  times bonbon's", *(f"{figure[key] / ours:.2f}" for figure in figures.values()))
    Console().print(table)
    Console().print("targets: bonbon adds at most 2 ms (p50) and 5 ms (p99) at 1, and serves 900 requests/s at 8")


ROWS = (
    ("p50", "p50_ms", 2, False),
    ("p99", "p99_ms", 2, False),
    ("p50 added", "added_p50_ms", 2, True),
    ("p99 added", "added_p99_ms", 2, False),
    ("requests/s at 1", "requests_per_second_at_1", 0, False),
    ("requests/s at 8", "requests_per_second_at_8", 0, True),
    ("processor", "processor_ms", 2, True),
)
"""The table's rows: the title, the figure, its decimal places, and whether it is also divided by bonbon's."""


def _body(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": MESSAGES, "max_tokens": 64, "temperature": 1.0} | fields).encode()


Start = Callable[..., Server]


def _litellm(start: Start, bin_: Path, work: Path, url: str) -> Server:
    parameters = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": KEY}
    config = {"model_list": [{"model_name": MODEL, "litellm_params": parameters}]}
    (work / "litellm.yaml").write_text(json.dumps(config))  # JSON is valid YAML
    command = [str(bin_ / "litellm"), "--config", str(work / "litellm.yaml"), "--host", "127.0.0.1", "--port"]
    local = {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return start("litellm", command, environment=local, ready="/health/liveliness")


def _its_hub(start: Start, bin_: Path, url: str) -> Server:
    server = start("its_hub", [str(bin_ / "its-iaas"), "--log-level", "ERROR", "--port"], ready="/v1/models")
    wanted = {"endpoint": f"{url}/v1", "model": MODEL, "api_key": KEY, "alg": "self-consistency", "budget": N}
    answer = httpx2.post(f"http://127.0.0.1:{server.port}/configure", json=wanted | {"regex_patterns": [r"(w\d+)"]})
    answer.raise_for_status()
    return server


@contextmanager
def start_process(
    work: Path,
    name: str,
    command: list[str],
    *,
    environment: dict[str, str] | None = None,
    core: int | None = 1,
    ready: str = "/health",
) -> Iterator[Server]:
    """Runs `command PORT` on one core (None: on all) until the block ends, after it has answered at `ready`."""
    port = _free_port()
    with (work / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(port)],
            env=os.environ | (environment or {}),
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=None if core is None else lambda: _pin(core),
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}{ready}", work / f"{name}.log")
        yield Server(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = perf_counter() + START_TIMEOUT
    while True:
        try:
            if httpx2.get(url, timeout=2).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        if process.poll() is not None or perf_counter() > until:
            raise SystemExit(f"{process.args!r} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


def _pin(core: int) -> None:
    cores = sorted(os.sched_getaffinity(0)) if not core else sorted(range(os.cpu_count() or 1))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    typer.run(main)
