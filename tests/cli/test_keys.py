"""API keys against the running service: a missing, wrong, revoked or other tenant's key gives no access."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from bonbon.cli.keys_cli import app as keys_app
from bonbon.cli.pairs_cli import app as pairs_app
from bonbon.demo.service_process import ServiceProcess
from tests.support.data.stores import refusal, run
from tests.support.service.fake_service import (
    BODY,
    CHAT,
    client_of,
    fake_service,
    in_thread,
    keys,
    new_key,
    rows,
    started,
)

POLL = 0.1
EVERYTHING = ("--scope", "complete", "--scope", "feedback", "--scope", "export", "--scope", "delete")


@dataclass
class Tenants:
    """A service that two tenants use, each with a key for everything but /admin."""

    service: ServiceProcess
    directory: Path
    ada: str
    bob: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tenants(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tenants]:
    directory = tmp_path_factory.mktemp("tenants")
    ada, bob = (new_key(directory, name, "--tenant", name, *EVERYTHING)[1] for name in ("ada", "bob"))
    async with started(fake_service(directory, keys_poll=POLL)) as service:
        yield Tenants(service, directory, ada, bob)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def status(service: ServiceProcess, key: str | None, path: str = "/v1/models") -> int:
    async with client_of(service, key) as client:
        return (await client.get(path)).status_code


async def until(service: ServiceProcess, key: str, wanted: int) -> None:
    async with asyncio.timeout(30):
        while await status(service, key) != wanted:
            await asyncio.sleep(POLL / 2)


async def group_of(service: ServiceProcess, key: str, **fields: object) -> str:
    async with client_of(service, key) as client:
        response = await client.post(CHAT, json=BODY | fields)
    assert response.status_code == 200, response.text
    group: str = response.json()["bonbon"]["group_id"]
    return group


@pytest.mark.parametrize("key", [None, "wrong", "bb-" + "A" * 43, "x" * 10_000, "\xff"])
async def test_without_a_key_that_is_known_nothing_is_answered(tenants: Tenants, key: str | None) -> None:
    headers = {} if key is None else {b"authorization": b"Bearer " + key.encode("latin-1")}
    async with httpx2.AsyncClient(base_url=tenants.service.url) as client:
        for method, path in (
            ("GET", "/v1/models"), ("POST", CHAT), ("POST", "/v1/completions"), ("POST", "/v1/feedback"),
            ("GET", "/v1/pairs"), ("GET", "/v1/groups/x"), ("DELETE", "/v1/groups?user=x"),
        ):  # fmt: skip
            response = await client.request(method, path, headers=headers)
            assert response.status_code == 401, (path, response.text)
            assert response.json()["error"]["code"] == "invalid_api_key"


async def test_a_key_that_is_revoked_opens_nothing_any_more(tenants: Tenants) -> None:
    key_id, key = new_key(tenants.directory, "short", "--tenant", "ada")
    await until(tenants.service, key, 200)
    keys(tenants.directory, "revoke", key_id)
    await until(tenants.service, key, 401)


async def test_a_rotated_key_goes_on_for_the_overlap(tenants: Tenants) -> None:
    old_id, old = new_key(tenants.directory, "worker", "--tenant", "ada")
    new = keys(tenants.directory, "rotate", old_id).stdout.strip()
    await until(tenants.service, new, 200)
    assert await status(tenants.service, old) == 200
    (found,) = rows(tenants.directory, "SELECT id FROM keys WHERE name = 'worker' AND expires IS NULL")
    newest = keys(tenants.directory, "rotate", found[0], "--overlap", "0s").stdout.strip()
    await until(tenants.service, newest, 200)
    assert await status(tenants.service, new) == 401


async def test_a_key_that_has_expired_opens_nothing(tenants: Tenants) -> None:
    _, key = new_key(tenants.directory, "brief", "--tenant", "ada", "--expires-in", "0s")
    _, later = new_key(tenants.directory, "later", "--tenant", "ada", "--expires-in", "1d")
    await until(tenants.service, later, 200)
    assert await status(tenants.service, key) == 401


@pytest.mark.parametrize(
    ("scope", "method", "path"),
    [
        ("complete", "GET", "/v1/models"),
        ("feedback", "POST", "/v1/feedback"),
        ("export", "GET", "/v1/pairs"),
        ("delete", "DELETE", "/v1/groups?user=nobody"),
        ("admin", "GET", "/admin/aliases"),
    ],
)
async def test_a_scope_opens_its_own_routes_and_no_others(tenants: Tenants, scope: str, method: str, path: str) -> None:
    """A key of every other scope is refused, a key of this one passes."""
    others = [s for s in ("complete", "feedback", "export", "delete", "admin") if s != scope]
    _, without = new_key(tenants.directory, "without", *(option for s in others for option in ("--scope", s)))
    _, with_it = new_key(tenants.directory, "with", "--scope", scope)
    body = {"group_id": "none", "score": 1.0} if path == "/v1/feedback" else None
    async with client_of(tenants.service) as client:

        async def answer(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return (await client.request(method, path, json=body, headers=headers)).status_code

        async with asyncio.timeout(30):
            while await answer(without) == 401 or await answer(with_it) == 401:
                await asyncio.sleep(POLL / 2)
        assert await answer(without) == 403
        assert await answer(with_it) == (400 if body else 200)


async def test_a_tenant_reads_its_own_groups_and_no_others(tenants: Tenants) -> None:
    mine = await group_of(tenants.service, tenants.ada, metadata={"secret": "canary-ada"})
    theirs = await group_of(tenants.service, tenants.bob, metadata={"secret": "canary-bob"})
    async with client_of(tenants.service, tenants.ada) as client:
        own = (await client.get(f"/v1/groups/{mine}")).json()
        assert (own["tenant"], own["metadata"], len(own["candidates"])) == ("ada", {"secret": "canary-ada"}, 4)
        other = await client.get(f"/v1/groups/{theirs}")
        none = await client.get(f"/v1/groups/{'0' * 32}")
        # Another's group and none at all look the same.
        assert (other.status_code, other.text) == (404, none.text.replace("0" * 32, theirs))
        exported = {json.loads(line)["group_id"] for line in (await client.get("/v1/pairs")).text.splitlines()}
    clean = {i for (i,) in rows(tenants.directory, "SELECT id FROM groups WHERE tenant = 'ada' AND unclean IS NULL")}
    assert exported == clean
    assert theirs not in exported


async def test_a_tenant_gives_feedback_on_its_own_groups_only(tenants: Tenants) -> None:
    theirs = await group_of(tenants.service, tenants.bob)
    async with client_of(tenants.service) as client:
        for key, wanted in ((tenants.ada, 400), (tenants.bob, 200)):
            word = {"group_id": theirs, "score": 1.0}
            answer = await client.post("/v1/feedback", json=word, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == wanted, answer.text


async def test_a_tenant_deletes_its_own_groups_only(tenants: Tenants) -> None:
    """Both have an end user of the same name."""
    for key in (tenants.ada, tenants.bob):
        await group_of(tenants.service, key, user="carol")
    async with client_of(tenants.service, tenants.ada) as client:
        deleted = (await client.delete("/v1/groups", params={"user": "carol"})).json()
        assert deleted == {"deleted": 1, "trained": [], "descended": []}
        assert (await client.delete("/v1/groups")).status_code == 400
    left = rows(tenants.directory, "SELECT tenant FROM groups WHERE end_user = 'carol'")
    assert left == [("bob",)]


async def test_nothing_is_trained_on_tenants_that_are_not_named(tenants: Tenants) -> None:
    for key in (tenants.ada, tenants.bob):
        for seed in range(3):
            await group_of(tenants.service, key, seed=seed)
    from bonbon.errors import UserError
    from bonbon.pairs.reading.snapshot import Fractions, read_rows, take_snapshot
    from bonbon.store.database import open_database

    url = f"sqlite+aiosqlite:///{tenants.directory / 'data' / 'bonbon.db'}"
    async with open_database(url) as database:
        with pytest.raises(UserError, match=r"several tenants.*'ada', 'bob'.*train\.tenants"):
            await take_snapshot(
                database, tenants.directory / "mixed", version="fake", fractions=Fractions(test=0.1, validation=0.1)
            )
        snapshot = await take_snapshot(
            database,
            tenants.directory / "ada",
            version="fake",
            fractions=Fractions(test=0.1, validation=0.1),
            tenants=["ada"],
        )
    owners = dict(rows(tenants.directory, "SELECT id, tenant FROM groups"))
    assert {owners[row["group_id"]] for row in read_rows(snapshot)} == {"ada"}
    one = tenants.directory / "pairs.jsonl"
    arguments = ("export", one, "--format", "jsonl", "--tenant", "bob", "--data-dir", tenants.directory / "data")
    assert in_thread(run, pairs_app, *arguments).exit_code == 0
    assert {owners[json.loads(line)["group_id"]] for line in one.read_text().splitlines()} == {"bob"}


async def test_keys_are_kept_as_digests_and_never_shown_again(tenants: Tenants) -> None:
    listed = keys(tenants.directory, "list").stdout + keys(tenants.directory, "list", "--json").stdout
    files = [path.read_bytes() for path in tenants.directory.rglob("*") if path.is_file()]
    for key in (tenants.ada, tenants.bob):
        assert key not in listed
        assert not any(key.encode() in content for content in files)
    assert '"digest"' not in listed


async def test_what_the_commands_cannot_do_is_said(tenants: Tenants) -> None:
    data = tenants.directory / "data"
    assert in_thread(refusal, keys_app, "revoke", "none", "--data-dir", data).startswith("there is no key 'none'")
    gone, _ = new_key(tenants.directory, "gone")
    keys(tenants.directory, "revoke", gone)
    assert "create a new one" in in_thread(refusal, keys_app, "rotate", gone, "--data-dir", data)
    said = in_thread(refusal, keys_app, "create", "x", "--expires-in", "soon", "--data-dir", data)
    assert said.startswith("--expires-in is 'soon'")


async def test_revoking_the_last_key_opens_nothing(tmp_path: Path) -> None:
    key_id, key = new_key(tmp_path, "only")
    async with started(fake_service(tmp_path, keys_poll=POLL)) as service:
        await until(service, key, 200)
        keys(tmp_path, "revoke", key_id)
        await until(service, key, 401)
        assert await status(service, None) == 401


async def test_other_machines_need_a_key_unless_auth_is_off(tmp_path: Path) -> None:
    """`bonbon serve` on a public address: refused without any key, open only where that is said."""
    service = fake_service(tmp_path, host="0.0.0.0")
    command = [sys.executable, "-m", "bonbon", "serve"]
    refused = await asyncio.to_thread(
        subprocess.run, command, env=service.environment, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 2
    assert "bonbon keys create" in refused.stderr
    assert "--no-auth" in refused.stderr
    async with started(fake_service(tmp_path, host="0.0.0.0", auth="off")) as opened:
        assert await status(opened, None) == 200
        assert await status(opened, None, "/v1/pairs") == 401, "reading the log always needs a key"
    assert "authentication is off" in (tmp_path / "service.log").read_text()
    async with started(fake_service(tmp_path, host="0.0.0.0", api_key="s3cret")) as closed:
        assert await status(closed, None) == 401
        assert await status(closed, "s3cret") == 200


async def test_a_key_is_named_by_its_name_or_the_beginning_of_its_id(tmp_path: Path) -> None:
    in_thread(_name_keys, tmp_path)


def _name_keys(directory: Path) -> None:
    first, _ = new_key(directory, "nightly")
    second, _ = new_key(directory, "frontend")
    assert revoked(directory) == []
    shared = first[: next(i for i in range(32) if first[i] != second[i])]
    said = refusal(keys_app, "revoke", shared, "--data-dir", directory / "data")
    assert said.startswith(f"'{shared}' matches 2 keys: {first} (nightly, made ")
    assert f"{second} (frontend, made " in said
    assert said.endswith("; give the id of one")
    assert refusal(keys_app, "revoke", "night", "--data-dir", directory / "data").startswith("there is no key 'night'")
    for wild in ("%", "_" * 32, "", first[:7]):
        assert refusal(keys_app, "revoke", wild, "--data-dir", directory / "data").startswith("there is no key")
    keys(directory, "revoke", first[:-8])
    assert revoked(directory) == [first]
    keys(directory, "rotate", "frontend")
    # Both of them open for now: the name alone does not tell them apart.
    assert "matches 2 keys" in refusal(keys_app, "revoke", "frontend", "--data-dir", directory / "data")
    keys(directory, "revoke", second)
    keys(directory, "rotate", "frontend", "--overlap", "0s")
    assert len(revoked(directory)) == 2


def revoked(directory: Path) -> list[str]:
    return [key_id for (key_id,) in rows(directory, "SELECT id FROM keys WHERE revoked IS NOT NULL ORDER BY id")]


async def test_ids_are_in_one_line_on_a_terminal_of_80_columns(tmp_path: Path) -> None:
    in_thread(_list_keys, tmp_path)


def _list_keys(directory: Path) -> None:
    key_id, _ = new_key(directory, "chat-frontend-of-the-shop", "--tenant", "acme", "--expires-in", "90d")
    printed = run(keys_app, "list", "--data-dir", directory / "data", columns=80).stdout
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert key_id in printed
    assert "…" not in printed
    assert "created (UTC)" in run(keys_app, "list", "--data-dir", directory / "data", columns=120).stdout
