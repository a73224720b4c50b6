"""/admin: access control, contents, promotion and rollback."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from bonbon.engines.engine import VersionFiles
from bonbon.registry.version_records import Version
from service.app import create_app
from service.routes.admin import versions as admin
from tests.support.service.hosting import client_in_process
from tests.support.service.running_service import (
    BASE,
    Running,
    WatchedEngine,
    new_version,
    running,
    settings_in,
    version_name,
)


async def approved(service: Running, weights: int) -> Version:
    version = await new_version(service.state.registry, weights)
    await service.state.registry.approve(version.name, {"passed": True, "reasons": []})
    return version


async def promote(service: Running, name: str, **fields: str) -> httpx2.Response:
    return await service.client.post("/admin/promote", json={"version": name, **fields})


async def test_a_promotion_is_served_when_its_response_comes(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path, registry_poll=60), engine=WatchedEngine()) as service:
        version = await approved(service, 1)
        response = await promote(service, version.name, expected=BASE)
        assert (response.status_code, response.json()) == (
            200,
            {"champion": version.name, "serving": version.name, "served": True},
        )
        assert (await service.ask()).json()["bonbon"]["version"] == version.name
        rolled_back = await service.client.post("/admin/rollback")
        assert rolled_back.json() == {"champion": BASE, "serving": BASE, "served": True}
        assert (await service.ask()).json()["bonbon"]["version"] == BASE
        actors = [(event.kind, event.actor) for event in await service.state.registry.history(2)]
        assert actors == [("rolled_back", "admin api"), ("promoted", "admin api")]


async def test_versions_and_aliases_are_shown(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        version = await approved(service, 1)
        await promote(service, version.name)
        later = await approved(service, 2)
        await service.state.swapper.converge()
        with service.state.router.hold(version.name):
            versions = (await service.client.get("/admin/versions")).json()["versions"]
        assert [(v["name"], v["state"], v["loaded"], v["references"]) for v in versions] == [
            (BASE, "retired", True, 0),
            (version.name, "promoted", True, 1),
            (later.name, "approved", True, 0),  # the challenger is loaded ahead of its promotion
        ]
        one = (await service.client.get(f"/admin/versions/{version.name}")).json()
        assert (one["kind"], one["parent"], one["training"]) == ("adapter", BASE, {"seed": 1})
        assert one["verdict"] == {"passed": True, "reasons": []}
        assert one["digest"] == version.digest
        aliases = (await service.client.get("/admin/aliases")).json()
        assert aliases == {
            "aliases": {"champion": version.name, "previous": BASE, "challenger": later.name},
            "serving": {
                "bonbon": version.name,
                "champion": version.name,
                "previous": BASE,
                "challenger": later.name,
            },
            "refused": {},
            "draining": [],
        }


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"version": "fake-bonbon-0009"}, 404, "there is no version 'fake-bonbon-0009'"),
        ({"version": version_name(1, 1)}, 400, "is registered, not approved"),
        ({"version": BASE, "expected": "fake-bonbon-0007"}, 409, "another promotion came first"),
        ({"version": BASE, "force": True}, 400, "force: unknown field"),
        ({}, 400, "version"),
    ],
)
async def test_a_promotion_that_cannot_be_is_refused(
    tmp_path: Path, body: dict[str, object], status: int, message: str
) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        await new_version(service.state.registry, 1)
        response = await service.client.post("/admin/promote", json=body)
        assert response.status_code == status
        assert message in response.json()["error"]["message"]
        assert service.state.router.champion == BASE


async def test_there_is_nothing_to_roll_back_to_at_first(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        response = await service.client.post("/admin/rollback")
        assert response.status_code == 400
        assert "no previous version" in response.json()["error"]["message"]
        assert (await service.client.get("/admin/versions/nope")).status_code == 404


async def test_a_promotion_that_this_service_refuses_says_why_and_may_be_repeated(tmp_path: Path) -> None:
    engine = WatchedEngine()
    async with running(settings_in(tmp_path), engine=engine) as service:
        version = await approved(service, 1)
        engine.nan.add(version.name)
        response = await promote(service, version.name)
        assert response.status_code == 409
        assert (
            "log-probabilities that are not finite; 'fake' continues to answer" in response.json()["error"]["message"]
        )
        assert (await service.ask()).json()["bonbon"]["version"] == BASE
        engine.nan.clear()
        assert (await promote(service, version.name)).json()["served"] is True


class Waiting(WatchedEngine):
    """An engine whose loads wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def load(self, version: VersionFiles) -> None:
        await self.gate.wait()
        await super().load(version)


async def test_a_promotion_that_takes_long_is_accepted_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "SERVED_WITHIN", 0.05)
    engine = Waiting()
    async with running(settings_in(tmp_path), engine=engine) as service:
        version = await approved(service, 1)
        response = await promote(service, version.name)
        assert (response.status_code, response.json()["served"]) == (202, False)
        engine.gate.set()
        await service.state.swapper.converge()
        assert service.state.router.champion == version.name


def client_at(service: Running, host: str) -> httpx2.AsyncClient:
    return client_in_process(service.app, host=host, base_url="http://127.0.0.1:8080")


LOCAL: list[tuple[str, dict[str, str] | list[tuple[str, str]], str | None]] = [
    ("127.0.0.1", {}, None),
    ("::1", {"host": "[::1]:8080"}, None),
    ("127.0.0.1", {"host": "localhost"}, None),
    ("127.0.0.1", {"host": "localhost:9090", "origin": "http://localhost:9090"}, None),
    ("127.0.0.1", {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}, None),
    ("127.0.0.1", {"sec-fetch-site": "none"}, None),
    ("203.0.113.7", {}, "another machine"),
    ("not-an-address", {}, "another machine"),
    ("127.0.0.1", {"host": "evil.example"}, "Host header"),
    ("127.0.0.1", {"host": "localhost.evil.example:8080"}, "Host header"),
    ("127.0.0.1", {"host": "127.0.0.1@evil.example"}, "Host header"),
    ("127.0.0.1", {"host": "127.0.0.1:x"}, "Host header"),
    ("127.0.0.1", {"host": ""}, "Host header"),
    ("127.0.0.1", {"host": "192.168.1.7:8080"}, "Host header"),
    ("127.0.0.1", {"origin": "http://localhost:3000"}, "another origin"),
    ("127.0.0.1", {"origin": "http://localhost:8080"}, "another origin"),
    ("127.0.0.1", {"origin": "https://127.0.0.1:8080"}, "another origin"),
    ("127.0.0.1", {"origin": "https://evil.example"}, "another origin"),
    ("127.0.0.1", {"origin": "null"}, "another origin"),
    ("127.0.0.1", {"sec-fetch-site": "cross-site"}, "another site"),
    ("127.0.0.1", {"sec-fetch-site": "same-site"}, "another site"),
    ("127.0.0.1", [("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], "another site"),
    ("127.0.0.1", [("origin", "http://127.0.0.1:8080"), ("origin", "http://evil.example")], "another origin"),
]
"""Address of the client, headers, and the reason why the request is refused."""
PROXIES = (
    "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "cf-connecting-ip",
    "cdn-loop", "true-client-ip", "x-original-host", "x-envoy-external-address", "fly-client-ip", "x-client-ip",
    "x_forwarded_for", "x-originating-ip", "wl-proxy-client-ip", "tailscale-user-login", "cloudfront-viewer-address",
    "incap-client-ip", "x-arr-ssl", "x-goog-iap-jwt-assertion", "x-scheme", "x-rewrite-url", "x-request-start",
    "x-sucuri-clientip", "x-varnish", "x-nginx-proxy",
)  # fmt: skip


async def test_without_a_key_only_this_machine_is_answered(tmp_path: Path) -> None:
    passed_on = [("127.0.0.1", {name: "127.0.0.1"}, "proxy") for name in PROXIES]
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        for host, headers, problem in [*LOCAL, *passed_on]:
            async with client_at(service, host) as client:
                for method, path, served in (("GET", "/admin/aliases", 200), ("POST", "/admin/rollback", 400)):
                    response = await client.request(method, path, headers=headers)
                    assert response.status_code == (served if problem is None else 403), (host, headers, response.text)
                    if problem is not None:
                        message = response.json()["error"]["message"]
                        assert problem in message, (host, headers)
                        assert "BONBON_SERVICE__ADMIN_KEY" in message


@pytest.mark.parametrize(
    "settings",
    [{"api_key": SecretStr("s3cret")}, {"host": "0.0.0.0", "auth": "off"}],
    ids=["another key is set", "other machines reach it"],
)
async def test_where_anything_else_needs_a_key_so_does_admin(tmp_path: Path, settings: dict[str, Any]) -> None:
    """A proxy on this machine may forward a request that then looks local."""
    made = settings_in(tmp_path, **settings)
    app = create_app(made, engine=WatchedEngine())
    await app.state.bonbon.database.start()
    async with client_in_process(app, base_url="http://127.0.0.1:8080") as client:
        response = await client.get("/admin/aliases")
    await app.state.bonbon.database.stop()
    assert response.status_code == 403
    assert "bonbon keys create --scope admin" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("authorization", "status"), [(None, 401), ("Bearer wrong", 401), ("Basic s3cret", 401), ("Bearer s3cret", 200)]
)
async def test_with_a_key_whoever_has_it_is_answered(tmp_path: Path, authorization: str | None, status: int) -> None:
    settings = settings_in(tmp_path, admin_key=SecretStr("s3cret"))
    headers = {"authorization": authorization} if authorization else {}
    async with running(settings, engine=WatchedEngine()) as service, client_at(service, "203.0.113.7") as client:
        for method, path in (("GET", "/admin/versions"), ("GET", "/admin/aliases"), ("GET", f"/admin/versions/{BASE}")):
            assert (await client.request(method, path, headers=headers)).status_code == status
        rollback = await client.post("/admin/rollback", headers=headers)
        assert rollback.status_code == (401 if status == 401 else 400)
        assert "s3cret" not in rollback.text
