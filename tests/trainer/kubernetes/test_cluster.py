"""`bonbon loop --create-job` against an API server that allows what the shipped Role allows, and no more."""

import json
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from aiohttp import web

from bonbon.errors import UserError
from tests.support.paths import ROOT
from trainer.kubernetes.cluster import Cluster, ClusterError
from trainer.run_directory import PLAN

BASE = ROOT / "deploy" / "kubernetes" / "base"


def manifest(file: str, kind: str, name: str) -> dict[str, Any]:
    documents = list(yaml.safe_load_all((BASE / file).read_text()))
    (found,) = (d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return dict(found)


class Api:
    """The part of the batch API that is asked, with the CronJob and the Role that ship."""

    def __init__(self) -> None:
        self.cronjob = manifest("trainer.yaml", "CronJob", "trainer")
        self.cronjob["metadata"]["uid"] = "4d3c"
        self.rules = manifest("watcher.yaml", "Role", "watcher")["rules"]
        self.jobs: list[dict[str, Any]] = []

    def allows(self, verb: str, resource: str, name: str = "") -> bool:
        return any(
            "batch" in rule["apiGroups"]
            and resource in rule["resources"]
            and verb in rule["verbs"]
            and name in rule.get("resourceNames", [name])
            for rule in self.rules
        )

    async def answer(self, request: web.Request) -> web.Response:
        assert request.headers["authorization"] == "Bearer a token"
        *_, namespace, resource = (part for part in request.path.split("/")[:7])
        name = request.path.partition(f"/{resource}/")[2]
        assert namespace == "bonbon"
        verb = {"POST": "create"}.get(request.method, "get" if name else "list")
        if not self.allows(verb, resource, name):
            return web.json_response({"message": f"watcher may not {verb} {resource}"}, status=403)
        if verb == "create":
            job = await request.json()
            job["metadata"] |= {"name": f"{job['metadata'].pop('generateName')}{len(self.jobs)}", "namespace": "bonbon"}
            kubernetes_validate.validate(job, "1.34", strict=True)
            self.jobs.append(job)
            return web.json_response(job, status=201)
        if verb == "list":
            return web.json_response({"items": self.jobs})
        found = name == "trainer"
        return web.json_response(self.cronjob if found else {"message": "not found"}, status=200 if found else 404)

    def end(self, kind: str, ago: timedelta) -> None:
        """The newest Job ended so, so long ago."""
        when = (datetime.now(UTC) - ago).isoformat(timespec="seconds").replace("+00:00", "Z")
        self.jobs[-1]["status"] = {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": when}]}

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[Cluster]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            yield Cluster(f"http://127.0.0.1:{port}", "bonbon", "a token")
        finally:
            await runner.cleanup()


async def test_a_job_is_made_from_the_template_that_ships() -> None:
    api = Api()
    async with api.cluster() as cluster:
        assert await cluster.create_job("trainer") == "The Job trainer-0 was made."
    (job,) = api.jobs
    assert job["spec"] == api.cronjob["spec"]["jobTemplate"]["spec"]
    assert job["metadata"]["labels"] == {"app": "trainer"}
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "CronJob", "name": "trainer", "uid": "4d3c"}
    ]


async def test_one_job_at_a_time_and_a_longer_pause_after_each_that_failed() -> None:
    api = Api()
    async with api.cluster() as cluster:
        await cluster.create_job("trainer")
        assert await cluster.create_job("trainer") == "The Job trainer-0 is at work."
        # Somebody else's Job says nothing.
        api.jobs.insert(0, {"metadata": {"name": "download"}})
        api.end("Complete", timedelta(hours=2))
        assert "was made" in await cluster.create_job("trainer")
        api.end("Failed", timedelta(minutes=10))
        assert "The last Job failed; the next one is made after" in await cluster.create_job("trainer")
        api.end("Failed", timedelta(minutes=20))
        assert "was made" in await cluster.create_job("trainer")
        api.end("Failed", timedelta(minutes=19))
        assert "The last Job failed" in await cluster.create_job("trainer")
        api.end("Failed", timedelta(hours=1))
        api.jobs[-2]["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        assert "was made" in await cluster.create_job("trainer")


async def test_what_the_role_does_not_allow_is_said() -> None:
    api = Api()
    api.rules = []
    async with api.cluster() as cluster:
        with pytest.raises(ClusterError, match="refused GET cronjobs/trainer with 403: watcher may not get cronjobs"):
            await cluster.create_job("trainer")
    with pytest.raises(ClusterError, match="did not answer GET cronjobs/trainer"):
        await cluster.create_job("trainer")


def test_the_role_allows_what_is_asked_and_no_more() -> None:
    api = Api()
    every = {verb for rule in api.rules for verb in rule["verbs"]}
    assert every == {"get", "list", "create"}
    assert not api.allows("get", "cronjobs", "another")
    assert not any(api.allows(verb, "jobs") for verb in ("get", "delete", "patch", "update"))


def test_a_pod_is_told_by_its_service_account(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in a pod of Kubernetes"):
        Cluster.of_this_pod({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)
    (tmp_path / "token").write_text("a token\n")
    (tmp_path / "namespace").write_text("bonbon")
    (tmp_path / "ca.crt").write_bytes(Path(ssl.get_default_verify_paths().cafile or "").read_bytes())
    with pytest.raises(UserError, match="in a pod of Kubernetes"):
        Cluster.of_this_pod({}, tmp_path)
    found = Cluster.of_this_pod({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert (found.url, found.namespace, found.token) == ("https://[fd00::1]:6443", "bonbon", "a token")
    assert isinstance(found.certificates, ssl.SSLContext)
    assert found.certificates.verify_mode is ssl.CERT_REQUIRED


def test_work_is_found_without_what_training_needs(tmp_path: Path) -> None:
    """In a process in which torch and what else a gateway lacks cannot be imported."""
    program = """
import asyncio, json, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "peft", "accelerate", "vllm", "matplotlib", "jinja2"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from bonbon.store.database import open_database
from bonbon.registry.registry import Registry
from bonbon.settings import load_settings
from trainer.kubernetes.work import find_work
from pathlib import Path
async def main():
    settings = load_settings(data_dir=Path(sys.argv[1]))
    async with open_database(settings.database) as database:
        first = await find_work(settings)
        registry = Registry(database, settings.versions_dir)
        base = await registry.register_base("tiny", Path(sys.argv[2]))
        await registry.promote(base.name, actor="test")
    second = await find_work(settings)
    (settings.runs_dir / "round-1").mkdir(parents=True)
    (settings.runs_dir / "round-1" / "round.json").write_text("{}")
    third = await find_work(settings)
    print(json.dumps([[w.is_ready, w.why] for w in (first, second, third)]))
asyncio.run(main())
"""
    from bonbon.demo.tiny_models import tiny_models

    command = [sys.executable, "-c", program, str(tmp_path), str(tiny_models().policy)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second, third = json.loads(done.stdout)
    assert first == [False, "Nothing is served yet: no gateway has registered its base model."]
    assert second[0] is False
    assert second[1].startswith("The next round waits for 1000 more clean groups")
    assert third == [True, f"The round in {tmp_path / 'runs' / 'round-1'} was cut off and goes on."]
    assert PLAN == "round.json"
