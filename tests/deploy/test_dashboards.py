"""The dashboards: generated, consistent, and every query of every panel answered by a real Prometheus.

It scrapes a service on the shipped models, under real traffic and through a real swap.
"""

import asyncio
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from bonbon.demo.service_process import ServiceProcess, free_port
from bonbon.demo.tiny_models import TinyModels
from bonbon.demo.traffic import Traffic
from bonbon.demo.world import requests
from bonbon.engines.fake_engine import FakeEngine
from bonbon.registry.registry import Registry
from bonbon.registry.round_progress import PROMOTED, CurvePoint, RoundStage, store_round_progress
from bonbon.rewards.fake_reward import FakeReward
from bonbon.settings import GateSettings, Settings
from bonbon.store.database import open_database
from service.app import build_state
from tests.support.models.adapters import database_url, register_adapter
from tests.support.models.evaluations import evaluation
from tests.support.needs import needs_prometheus
from tests.support.paths import ROOT
from trainer.evaluation.gate import judge

GRAFANA, PROMETHEUS = ROOT / "deploy" / "grafana", ROOT / "deploy" / "prometheus"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
NAME = re.compile(r"\b(?:bonbon_\w+|bonbon:[\w:]+|process_\w+)")
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""], "info": ["_info"]}


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in FILES]


def targets(dashboard: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every query with its panel's title."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"{dashboard['title']}: {panel['title']} ({target['refId']})", target


def rules() -> list[dict[str, Any]]:
    files = (yaml.safe_load(file.read_text()) for file in (PROMETHEUS / "rules").glob("*.yml"))
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def test_the_dashboards_are_what_the_generator_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(GRAFANA / "generate.py"), str(tmp_path)], check=True)
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert {file.name: file.read_text() for file in FILES} == written, "make docs writes them anew"
    assert len(written) == 5


def test_references_resolve() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/bonbon.yml").read_text())["providers"]
    compose = (ROOT / "docker-compose.yml").read_text()
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in compose
    for dashboard in dashboards():
        variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert variables["datasource"]["query"] == source["type"] == "prometheus"
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids) > 8
        for title, target in targets(dashboard):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title
            used = set(re.findall(r"\$\{?(\w+)", target["expr"]))
            assert used <= variables.keys() | {"__rate_interval"}, title
        places = [panel["gridPos"] for panel in dashboard["panels"]]
        cells = [(p["x"] + i, p["y"] + j) for p in places for i in range(p["w"]) for j in range(p["h"])]
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24
    assert len({dashboard["uid"] for dashboard in dashboards()}) == 5


def test_no_dashboard_and_no_rule_names_what_is_not_exposed() -> None:
    state = build_state(Settings(engine="fake"), FakeEngine(), FakeReward())
    families = text_string_to_metric_families(state.metrics.exposition().decode())
    exposed = {f.name + suffix for f in families for suffix in SUFFIXES[f.type] if not f.name.endswith("_created")}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    expressions = [target["expr"] for dashboard in dashboards() for _, target in targets(dashboard)]
    for dashboard in dashboards():
        expressions += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
        expressions += [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    expressions += [rule["expr"] for rule in rules()]
    named = {name for expression in expressions for name in NAME.findall(expression)}
    assert named - exposed == recorded & named


class Prometheus:
    """A real server on the deployed configuration and rules, with these gateways and shorter intervals."""

    def __init__(self, directory: Path, *gateways: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.directory = directory
        shutil.copytree(PROMETHEUS, directory)
        config = (directory / "prometheus.yml").read_text().replace('"service:8080"', json.dumps(gateways)[1:-1])
        (directory / "prometheus.yml").write_text(re.sub(r"_interval: \w+", "_interval: 1s", config))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[httpx2.AsyncClient]:
        with (self.directory / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                "prometheus",
                f"--config.file={self.directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={self.directory / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                stdout=log,
                stderr=log,
            )
        try:
            async with httpx2.AsyncClient(base_url=self.url, timeout=30) as client, asyncio.timeout(240):
                while not await _is_ready(client):
                    await asyncio.sleep(0.1)
                yield client
        finally:
            process.terminate()
            await process.wait()


async def _is_ready(client: httpx2.AsyncClient) -> bool:
    """Returns whether Prometheus answers queries. It listens before it does, and then answers 503 in plain text."""
    try:
        return (await client.get("/-/ready")).status_code == 200
    except httpx2.TransportError:
        return False


async def query(client: httpx2.AsyncClient, target: dict[str, Any]) -> list[float]:
    """The finite values that Grafana would be given, its variables filled in."""
    expr = re.sub(r"\$(reward|instance)\b", ".*", target["expr"]).replace("$__rate_interval", "20s")
    assert "$" not in expr
    now = (await client.get("/api/v1/query", params={"query": "time()"})).json()["data"]["result"][0]
    path, times = "/api/v1/query", {}
    if not target["instant"]:
        path, times = "/api/v1/query_range", {"start": now - 60, "end": now, "step": 1}
    response = await client.get(path, params={"query": expr, **times})
    assert response.status_code == 200, response.text
    series = response.json()["data"]["result"]
    points = [point for one in series for point in one.get("values", [one.get("value")])]
    return [number for number in (float(value) for _, value in points) if math.isfinite(number)]


async def unanswered(client: httpx2.AsyncClient, wanted: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of `wanted` that have no data yet."""
    missing = dict(wanted)
    for title, target in wanted.items():
        if await query(client, target):
            del missing[title]
    return missing


async def evaluate(environment: dict[str, str], name: str) -> None:
    """What a round would have left of the version in the database."""
    measured = evaluation(version=name, base="tiny-support", served="tiny-support")
    async with open_database(database_url(environment)) as database:
        registry = Registry(database, Path(environment["BONBON_DATA_DIR"]) / "versions")
        await registry.record_evaluation(name, measured.to_dict())
        await registry.approve(name, judge(measured, GateSettings()).to_dict())
        await store_round_progress(
            database,
            "round",
            run="round-1",
            sampler="tiny-support",
            stage=RoundStage.FINISHED,
            epochs=3.0,
            curve=[CurvePoint(3.0, 0.4, 4.9, 5.5)],
            version=name,
            outcome=PROMOTED,
        )


@needs_prometheus
async def test_a_real_prometheus_answers_every_query_of_every_panel(tiny_models: TinyModels, tmp_path: Path) -> None:
    environment = {
        "BONBON_MODEL": str(tiny_models.policy),
        "BONBON_REWARD": str(tiny_models.reward),
        "BONBON_DATA_DIR": str(tmp_path / "data"),
        "BONBON_N": "4",
        "BONBON_SERVICE__REGISTRY_POLL": "0.1",
        "BONBON_SERVICE__AUDIT_FRACTION": "1",
        "BONBON_SERVICE__WIN_RATE_FLOOR": "0",  # a version with random weights wins little
        "OMP_NUM_THREADS": "1",
    }
    service = ServiceProcess(environment, tmp_path / "service.log")
    await service.start()
    prometheus = Prometheus(tmp_path / "prometheus", service.url.removeprefix("http://"))
    stop, questions = asyncio.Event(), requests(7, 60)
    try:
        async with (
            prometheus.running() as client,
            AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60.0) as users,
        ):
            traffic = Traffic(users)
            sending = asyncio.create_task(traffic.until(stop, questions, model="bonbon", workers=2))
            # No vLLM server and no PostgreSQL is scraped here, and no alert need fire.
            missing = {
                title: target
                for dashboard in dashboards()
                for title, target in targets(dashboard)
                if dashboard["uid"] != "bonbon-engines" and "Alerts (" not in title
            }
            # What best-of-n gains is seen only while it answers: until two scrapes have seen it grow.
            gains = {"expr": "rate(bonbon_reward_best_minus_first_count[1m]) > 0", "instant": True}
            while await unanswered(client, {"gains": gains}):
                await asyncio.sleep(1)
            missing = await unanswered(client, missing)
            name = await register_adapter(environment, tiny_models.policy, tmp_path / "adapter", 1)
            await evaluate(environment, name)
            async with httpx2.AsyncClient(base_url=service.url, timeout=60) as admin:
                assert (await admin.post("/admin/promote", json={"version": name})).json()["served"]
            for seed, model in enumerate(["bonbon", "base"] * 3):
                await traffic.stream(questions[seed], model=model, seed=seed)
            while missing:  # until the last audit has been counted and scraped; the server's time is limited
                await asyncio.sleep(1)
                missing = await unanswered(client, missing)
                print("no data yet:", sorted(missing))
            stop.set()
            assert (await sending).failed == 0
            swaps = {"expr": dashboards()[0]["annotations"]["list"][0]["expr"], "instant": False}
            assert await query(client, swaps)
            assert await query(client, {"expr": "bonbon_alias_info", "instant": True})
            rules = (await client.get("/api/v1/rules")).json()["data"]["groups"]
            assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}
    finally:
        stop.set()
        await service.stop()


@pytest.mark.vllm
def test_the_panels_of_engines_name_what_vllm_exposes() -> None:
    loggers = pytest.importorskip("vllm.v1.metrics.loggers")
    source = Path(loggers.__file__ or "").read_text()
    expressions = [target["expr"] for dashboard in dashboards() for _, target in targets(dashboard)]
    named = set(re.findall(r"\bvllm:\w+", " ".join(expressions)))
    assert len(named) == 5
    assert [name for name in named if f'"{name.removesuffix("_total")}"' not in source] == []
