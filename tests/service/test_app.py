"""The service as a whole: wiring, health, metrics, start, drain and stop."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bonbon import __version__
from bonbon.demo.tiny_models import tiny_models
from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import EngineError, UserError
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import Settings
from service.app import create_app
from service.http_server.server import bind
from tests.support.paths import ROOT
from tests.support.service.hosting import client_in_process, in_process
from tests.support.service.running_service import BASE, Running, WatchedEngine, running, settings_in


@pytest.mark.parametrize(("spool_bytes", "status"), [(0, 503), (10_000, 200)])
async def test_health_tells_what_is_served(tmp_path: Path, spool_bytes: int, status: int) -> None:
    """Without a database the service is ready only while groups can wait in the spool."""
    engine = WatchedEngine()
    async with running(settings_in(tmp_path, spool_bytes=spool_bytes), engine=engine) as service:
        assert (await service.client.get("/health/live")).json() == {"status": "live"}
        ready = await service.client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (
            200,
            {"status": "ready", "reason": None, "champion": BASE, "serving": BASE, "refused": {}},
        )
        engine.failure = "out of memory"
        ready = await service.client.get("/health/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the engine cannot generate: out of memory")
        engine.failure = None
        service.app.state.stopping = True
        ready = await service.client.get("/health/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the service is stopping")
        service.app.state.stopping = False
        await service.state.swapper.stop()
        await service.state.database.stop()
        ready = await service.client.get("/health/ready")
        assert (ready.status_code, "database" in ready.json()["reason"]) == (status, True)
        assert (await service.client.get("/health/live")).status_code == 200


async def test_metrics_tell_what_happened_and_nothing_private(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, audit_fraction=1.0), engine=WatchedEngine()) as service:
        await service.ask(user="ada-lovelace")
        await service.ask(stream=True)
        await service.ask("base", store=False)
        await service.ask("no-such-model")
        await service.client.get("/admin/versions/first")
        await service.client.get("/wp-login.php")
        version = await service.promoted(1)
        await service.state.swapper.converge()
        await service.ask()
        await service.ask(stream=True)
        await service.state.audits.idle()
        scrape = await service.client.get("/metrics")
    lines = scrape.text.splitlines()
    assert scrape.headers["content-type"].startswith("text/plain")
    for line in (
        'bonbon_requests_total{route="/v1/chat/completions",status="200"} 5.0',
        'bonbon_requests_total{route="/v1/chat/completions",status="404"} 1.0',
        'bonbon_requests_total{route="/admin/versions/{name}",status="404"} 1.0',
        'bonbon_requests_total{route="unmatched",status="404"} 1.0',
        f'bonbon_answers_total{{asked="alias",model_version="{BASE}"}} 2.0',
        f'bonbon_answers_total{{asked="base",model_version="{BASE}"}} 1.0',
        f'bonbon_answers_total{{asked="alias",model_version="{version.name}"}} 2.0',
        'bonbon_groups_logged_total{origin="request",unclean="single"} 2.0',
        'bonbon_groups_logged_total{origin="request",unclean=""} 2.0',
        'bonbon_groups_logged_total{origin="audit",unclean=""} 2.0',
        'bonbon_reward_best_minus_first_count{reward="fake"} 2.0',
        'bonbon_reward_best_minus_worst_count{reward="fake"} 2.0',
        'bonbon_swaps_total{outcome="served"} 1.0',
        f'bonbon_alias_info{{alias="bonbon",model_version="{version.name}"}} 1.0',
        "bonbon_versions_loaded 2.0",
    ):
        assert line in lines
    assert f'bonbon_alias_info{{alias="bonbon",model_version="{BASE}"}} 1.0' not in lines
    assert 'bonbon_time_to_first_token_seconds_count{asked="alias"} 2.0' in lines
    for private in ("ada-lovelace", "Where is my order", "wp-login", "no-such-model"):
        assert private not in scrape.text


async def test_a_degraded_answer_is_counted(tmp_path: Path) -> None:
    reward = FakeReward()
    async with running(settings_in(tmp_path), engine=WatchedEngine(), reward=reward) as service:
        reward.failure = "down"
        assert (await service.ask()).json()["bonbon"]["degraded"]
        scrape = (await service.client.get("/metrics")).text
    assert 'bonbon_degraded_total{origin="request",reason="failed",reward="fake"} 1.0' in scrape
    assert 'bonbon_groups_logged_total{origin="request",unclean="degraded"} 1.0' in scrape


async def test_the_service_describes_itself(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        # The machine may have no way to the internet.
        page = (await service.client.get("/docs")).text
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(loaded) > 1
        assert [(await service.client.get(url)).status_code for url in loaded] == [200] * len(loaded)
        console = await service.client.get("/", follow_redirects=True)
        assert (console.status_code, console.url.path) == (200, "/console/")
        paths = (await service.client.get("/openapi.json")).json()["paths"]
        assert (await service.client.get("/version")).json() == {"version": __version__}
    assert {"/v1/chat/completions", "/admin/promote", "/health/ready", "/metrics"} <= set(paths)


async def test_the_base_is_registered_and_promoted_once(tmp_path: Path) -> None:
    for _ in range(2):
        async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
            history = await service.state.registry.history()
            assert await service.state.registry.aliases() == {"champion": BASE}
    assert [event.kind for event in history] == ["promoted", "registered"]


async def test_a_request_in_flight_ends_before_the_service_does(tmp_path: Path) -> None:
    app = create_app(settings_in(tmp_path), engine=FakeEngine(BASE, delay=0.02))
    async with client_in_process(app) as client:
        async with app.router.lifespan_context(app):
            asked = asyncio.create_task(Running(app, app.state.bonbon, client).ask())
            while not app.state.bonbon.router.in_flight:
                await asyncio.sleep(0.001)
        assert asked.done()
        assert asked.result().status_code == 200


async def test_a_request_that_does_not_end_is_cut_off(tmp_path: Path) -> None:
    engine = FakeEngine(BASE, delay=60)
    settings = settings_in(tmp_path, drain_timeout=0.1)
    app = create_app(settings, engine=engine)
    async with asyncio.timeout(10), app.router.lifespan_context(app):
        hold = app.state.bonbon.router.hold(BASE)
        hold.__enter__()
    assert app.state.bonbon.router.in_flight == 1
    assert await engine.loaded() == frozenset()


class Broken(FakeEngine):
    """An engine that cannot be started until it is repaired."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(BASE)
        self.problem: Exception | None = problem

    async def start(self) -> None:
        if self.problem is not None:
            raise self.problem
        await super().start()


async def test_an_engine_that_cannot_start_yet_leaves_the_service_up_and_saying_why(tmp_path: Path) -> None:
    problem = EngineError("no replica answers")
    engine = Broken(problem)
    app = create_app(settings_in(tmp_path), engine=engine)
    app.state.bonbon.startup.retry = 0.01
    async with in_process(app) as client:
        assert (await client.get("/health/live")).status_code == 200
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "unready")
        assert ready.json()["reason"] == f"the engine cannot draw yet: {problem}"
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/v1/chat/completions")):
            answer = await client.request(method, path, json={"model": "bonbon", "prompt": "x", "messages": []})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["type"]) == (503, "unavailable", "server_error")
            assert str(problem) in error["message"]
            assert answer.headers["retry-after"]
        promoted = await client.post("/admin/promote", json={"version": BASE})
        assert (promoted.status_code, promoted.json()["served"]) == (202, False)
        engine.problem = RuntimeError("nobody has thought of this")
        async with asyncio.timeout(30):
            while "RuntimeError" not in ((await client.get("/health/ready")).json()["reason"] or ""):
                await asyncio.sleep(0.01)
        engine.problem = None
        async with asyncio.timeout(30):
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.01)
        answer = await client.post("/v1/completions", json={"model": "bonbon", "prompt": "x"})
        assert answer.status_code == 200
    assert await engine.loaded() == frozenset()


async def test_a_failing_start_stops_what_had_started(tmp_path: Path) -> None:
    app = create_app(settings_in(tmp_path), engine=Broken(OSError("no memory")))
    with pytest.raises(OSError, match="no memory"):
        async with app.router.lifespan_context(app):
            pass
    with pytest.raises(Exception, match="has not been started"):
        await app.state.bonbon.registry.aliases()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"no model is set: set --model \(or BONBON_MODEL\)"),
        ({"engine": "warp"}, "no model is set"),
        ({"engine": "warp", "model": "tiny"}, "engine = 'warp' is unknown"),
        ({"engine": "fake", "reward": "telepathy:x"}, "reward kind 'telepathy' is unknown"),
        ({"model": "/no/such/directory", "reward": "fake:"}, "is not an existing directory"),
    ],
)
def test_a_setting_that_cannot_work_names_its_remedy(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        create_app(Settings(data_dir=tmp_path, **settings))  # type: ignore[arg-type]


def test_a_missing_reward_names_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no reward is set: set --reward \(or BONBON_REWARD\)"):
        create_app(Settings(data_dir=tmp_path, model="tiny"), engine=FakeEngine("tiny"))


def test_the_fake_engine_needs_neither_model_nor_reward(tmp_path: Path) -> None:
    state = create_app(Settings(data_dir=tmp_path, engine="fake")).state.bonbon
    assert (state.engine.base, state.reward.name) == ("fake", "fake")
    assert create_app(Settings(data_dir=tmp_path, engine="fake", model="My/Model")).state.bonbon.engine.base == "model"


def test_an_address_that_cannot_be_had_names_its_remedy() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match="choose another --port, or 0"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="choose another --host"):
        bind("no.such.host.invalid", 0)


class Command:
    """Runs `bonbon serve` in a separate process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process, self.url = process, ""

    async def ready(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            line = (await self.process.stdout.readline()).decode()
        assert line.startswith("bonbon is ready: http://127.0.0.1:"), line
        self.url = line.split()[3]

    async def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        async with asyncio.timeout(30):
            _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


async def test_with_json_logs_every_line_is_an_object(tmp_path: Path) -> None:
    async with command(tmp_path, "--engine", "fake", "--port", "0", "--json-logs") as service:
        assert service.process.stderr is not None
        lines: list[dict[str, Any]] = []
        async with asyncio.timeout(60):
            while not lines or lines[-1]["event"] != "bonbon is ready":
                lines.append(json.loads(await service.process.stderr.readline()))
        assert lines[-1]["url"].startswith("http://127.0.0.1:")
        service.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            output, errors = await service.process.communicate()
    assert output == b""
    assert all(json.loads(line)["event"] for line in errors.splitlines())


async def test_with_json_logs_the_models_that_are_loaded_write_objects_only(tmp_path: Path) -> None:
    """The progress bars of transformers are no objects."""
    models = tiny_models()
    given = ("--model", str(models.policy), "--reward", str(models.reward), "--port", "0", "--json-logs")
    async with command(tmp_path, *given, OMP_NUM_THREADS="1") as service:
        assert service.process.stderr is not None
        events: list[str] = []
        async with asyncio.timeout(120):
            while not events or events[-1] != "bonbon is ready":
                events.append(json.loads(await service.process.stderr.readline())["event"])


async def test_with_json_logs_what_is_written_past_the_log_is_an_object(tmp_path: Path) -> None:
    """As a library in C or a process that it starts writes, until the very end."""
    (tmp_path / "loud.py").write_text(
        'import atexit, os, subprocess\n\nos.write(2, b"from C\\n\\n")\nprint("from Python")\n'
        'subprocess.run(["sh", "-c", "echo from a process; echo of its own >&2"])\n'
        'print("[" * 20_000)\natexit.register(print, "at the end")\n'
        'print("outlives it:", subprocess.Popen(["sleep", "60"], start_new_session=True).pid)\n'
        "def score(prompt, completions):\n    return [0.0] * len(completions)\n"
    )
    given = ("--engine", "fake", "--reward", "python:loud:score", "--port", "0", "--json-logs")
    async with command(tmp_path, *given, PYTHONPATH=str(tmp_path)) as service:
        assert service.process.stderr is not None
        lines: list[dict[str, Any]] = []
        async with asyncio.timeout(60):
            while not lines or lines[-1]["event"] != "bonbon is ready":
                lines.append(json.loads(await service.process.stderr.readline()))
        # To every process of the service, as a terminal sends an interrupt.
        os.killpg(service.process.pid, signal.SIGTERM)
        async with asyncio.timeout(60):
            output, errors = await service.process.communicate()
    assert (service.process.returncode, output) == (0, b"")
    lines += map(json.loads, errors.splitlines())
    loud = [line["event"] for line in lines if line["logger"] == "output"]
    (outlives,) = (event for event in loud if event.startswith("outlives it: "))
    short = ["at the end", "from C", "from Python", "from a process", "of its own"]
    assert sorted(loud) == sorted([*short, "[" * 20_000, outlives])


@pytest.mark.parametrize("wrong", ["./none", "tests"])
async def test_with_json_logs_the_error_that_ends_it_is_an_object(tmp_path: Path, wrong: str) -> None:
    async with command(tmp_path, "--json-logs", "--port", "0", "--model", wrong, "--reward", "length") as service:
        async with asyncio.timeout(60):
            output, errors = await service.process.communicate()
        assert (service.process.returncode, output) == (2, b"")
        lines = [json.loads(line) for line in errors.splitlines()]
        assert lines[-1]["level"] == "error"
        assert wrong in lines[-1]["event"]


@asynccontextmanager
async def command(directory: Path, *arguments: str, **environment: str) -> AsyncIterator[Command]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bonbon", "serve", "--data-dir", str(directory), *arguments,
        cwd=ROOT, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


QUESTION = {"model": "bonbon", "prompt": "Where is my order?", "max_tokens": 40, "stop": []}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_drains_and_exits_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    slow = {"BONBON_ENGINE_OPTIONS": '{"delay": 0.05}'}
    async with command(tmp_path, "--engine", "fake", "--port", "0", **slow) as service:
        await service.ready()
        async with httpx2.AsyncClient(base_url=service.url, timeout=30) as client:
            assert (await client.get("/health/ready")).status_code == 200
            asked = asyncio.create_task(client.post("/v1/completions", json=QUESTION | {"best_of": 8}))
            await asyncio.sleep(0.1)
            status, errors = await service.end(number)
            answer = await asked
    assert (status, answer.status_code) == (0, 200)
    assert answer.json()["bonbon"]["version"] == "fake"
    assert "service started" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "0"), "error: no model is set: set --model (or BONBON_MODEL)"),
        (("--engine", "fake", "--port", "70000"), "error: settings: service.port = 70000"),
        (("--engine", "fake", "--database", "mysql://x"), "use sqlite+aiosqlite:///FILE"),
        (("--engine", "fake", "--host", "no.such.host.invalid"), "choose another --host"),
    ],
)
async def test_what_the_user_can_mend_is_one_line_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    async with command(tmp_path, *arguments, BONBON_MODEL="") as service:
        async with asyncio.timeout(60):
            _, errors = await service.process.communicate()
    assert service.process.returncode == 2
    assert message in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_a_taken_port_is_known_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with command(tmp_path, "--engine", "fake", "--port", port) as service:
            async with asyncio.timeout(60):
                _, errors = await service.process.communicate()
    assert service.process.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in errors.decode()
    assert not (tmp_path / "bonbon.db").exists()
