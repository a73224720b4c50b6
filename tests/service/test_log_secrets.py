"""No log line of any command contains a password, a key or a prompt, whatever fails."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from bonbon.cli.main import add_commands, app
from bonbon.demo.tiny_models import TinyModels
from bonbon.engines.engine import Delta, DrawRequest, Started, VersionKind
from bonbon.errors import StoreError, UserError
from bonbon.observability.logs import configure_logs
from bonbon.observability.tracebacks import format_traceback
from bonbon.registry.transfer.exported_version import EVALUATION, RECORD, Record
from bonbon.settings import load_settings
from bonbon.store.database import Database
from service.app import create_app
from tests.support.servers.postgresql_server import PostgresqlServer, postgresql_server
from tests.support.service.forked_command import ForkedCommand
from tests.support.service.running_service import WatchedEngine, running, settings_in

PASSWORD = "canary-password"
SECRETS = (PASSWORD, "canary-key", "canary-prompt", "canary-user")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    with postgresql_server() as started:
        started.execute(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'")
        yield started


@pytest.fixture
def url(server: PostgresqlServer) -> Iterator[str]:
    """Returns the URL of a new database, including the password."""
    server.execute("CREATE DATABASE canary")
    yield server.url_of("postgres", password=PASSWORD, database="canary")
    server.execute(*(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in ("canary", "renamed")))


def rename_away(server: PostgresqlServer) -> None:
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'canary'",
        "ALTER DATABASE canary RENAME TO renamed",
    )


@pytest.fixture
def usual_logs() -> Iterator[None]:
    """Restores the log configuration afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


class Broken(WatchedEngine):
    """An engine that raises an unexpected exception while it holds the request."""

    async def draw(self, request: DrawRequest) -> AsyncGenerator[Started | Delta]:
        headers = {"authorization": "Bearer canary-key"}
        if headers:
            raise RuntimeError(f"nobody expects this of {len(headers)} header\nwith {request.prompt} behind it")
        yield Started((), "")


@pytest.mark.parametrize("as_json", [False, True])
async def test_an_unexpected_failure_is_logged_without_what_it_was_about(
    tmp_path: Path, as_json: bool, capsys: pytest.CaptureFixture[str], usual_logs: None
) -> None:
    configure_logs(json=as_json)
    async with running(settings_in(tmp_path), engine=WatchedEngine()) as service:
        service.state.engine.__class__ = Broken
        response = await service.client.post(
            "/v1/chat/completions",
            json={"model": "bonbon", "messages": [{"role": "user", "content": "canary-prompt"}], "user": "canary-user"},
            headers={"authorization": "Bearer canary-key"},
        )
    assert response.status_code == 500
    written = capsys.readouterr().err
    assert "nobody expects this of 1 header" in written
    assert "test_log_secrets.py" in written, "where it came from is told"
    for secret in SECRETS:
        assert secret not in written + response.text


COMMANDS = {
    "keys": ("create canary", "list", "revoke x", "rotate x"),
    "models": ("list", "show x", "export x --out y", "import x", "promote x", "rollback"),
    "pairs": (
        "stats",
        "export x.parquet",
        "curve",
        "purge --user canary --yes",
        "rescore --reward length",
        "spool --replay",
    ),
    "train": ("",),
    "evaluate": ("x",),
    "loop": ("", "--once"),
    "serve": ("", "--json-logs"),
}
WITHOUT_A_DATABASE_OF_A_URL = {"demo", "distill", "init"}
WITH_OTHER_FINDINGS = {"doctor"}


def test_every_command_is_looked_at() -> None:
    if not app.registered_commands:
        add_commands()
    names = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert names == COMMANDS.keys() | WITHOUT_A_DATABASE_OF_A_URL | WITH_OTHER_FINDINGS
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands = group.typer_instance.registered_commands
        inner = {command.name or getattr(command.callback, "__name__", "") for command in commands}
        assert inner == {line.split()[0] for line in COMMANDS[group.name or ""]}


@pytest.mark.parametrize(
    "command", [(name, *line.split()) for name, lines in COMMANDS.items() for line in lines], ids=" ".join
)
def test_a_database_that_is_gone_is_told_of_in_one_line(
    command: tuple[str, ...], server: PostgresqlServer, url: str, tmp_path: Path
) -> None:
    rename_away(server)
    if command[1:2] == ("import",):
        command = ("models", "import", str(an_export(tmp_path / "x")))
    done = ForkedCommand(tmp_path, *command, BONBON_DATABASE_URL=url, BONBON_ENGINE="fake", COLUMNS="500")
    assert done.wait() == 2
    assert 'database "canary" does not exist' in done.written.replace('\\"', '"')  # as JSON has it
    assert "Traceback" not in done.written
    for secret in SECRETS:
        assert secret not in done.written


def an_export(directory: Path) -> Path:
    """Writes the files that `bonbon models import` reads before it opens the database."""
    names = {"version": "x", "base": "base", "base_digest": "", "digest": "", "bonbon": "0", "created": ""}
    record = Record(
        **names, kind=VersionKind.ADAPTER, merged=False, base_hub_name=None, parent=None, k=1, training={}, verdict=None
    )
    directory.mkdir()
    (directory / RECORD).write_text(record.to_json())
    (directory / EVALUATION).write_text("{}")
    return directory


def test_a_database_that_is_gone_is_a_finding_without_its_password(
    server: PostgresqlServer, url: str, tmp_path: Path
) -> None:
    rename_away(server)
    done = ForkedCommand(tmp_path, "doctor", BONBON_DATABASE_URL=url, BONBON_ENGINE="fake", COLUMNS="500")
    assert done.wait() == 1
    assert 'database "canary" does not exist' in done.written.replace('\\"', '"')  # as JSON has it
    assert "Traceback" not in done.written
    for secret in SECRETS:
        assert secret not in done.written


@pytest.mark.parametrize("command", ["serve", "loop"])
async def test_a_database_that_goes_under_a_running_command_is_logged_without_its_password(
    command: str, server: PostgresqlServer, url: str, tmp_path: Path, tiny_models: TinyModels
) -> None:
    environment = {
        "BONBON_DATABASE_URL": url,
        "BONBON_DATA_DIR": str(tmp_path / "data"),
        "BONBON_LOOP__POLL": "0.1",
        "BONBON_SERVICE__PORT": "0",
        "BONBON_SERVICE__REGISTRY_POLL": "0.1",
        "BONBON_SERVICE__RETENTION_DAYS": "1",
        "BONBON_SERVICE__RETENTION_POLL": "0.1",
    }
    if command == "serve":
        environment |= {"BONBON_ENGINE": "fake"}
    else:
        environment |= {"BONBON_MODEL": str(tiny_models.policy), "BONBON_REWARD": str(tiny_models.reward)}
    begun, failed = (
        ("bonbon is ready", "cannot read the registry")
        if command == "serve"
        else ("The next round", "the round was interrupted")
    )
    under_way = ForkedCommand(tmp_path, command, **environment)

    async def written(text: str) -> None:
        async with asyncio.timeout(120):
            while text not in under_way.written:
                assert under_way.wait(0) is None, under_way.written
                await asyncio.sleep(0.1)

    await written(begun)
    await asyncio.to_thread(rename_away, server)
    await written(failed)
    await written('database "canary" does not exist')
    os.kill(under_way.pid, signal.SIGTERM)
    assert await asyncio.to_thread(under_way.wait) == 0
    assert "Traceback" in under_way.written, "where it came from is told"
    for secret in SECRETS:
        assert secret not in under_way.written


def test_what_a_database_says_of_a_row_is_in_no_log(server: PostgresqlServer, url: str) -> None:
    """PostgreSQL's message contains the whole row that violates a constraint."""
    user = SECRETS[-1]  # tracebacks show lines of source
    from bonbon.pairs.group_store import store_groups
    from bonbon.store.database import open_database
    from tests.support.data.groups import scored_group

    async def store() -> None:
        async with open_database(url) as database:
            await store_groups(database, [scored_group(1, user=user)])

    server.execute_in("canary", "SELECT 1")
    asyncio.run(store())
    server.execute_in("canary", "ALTER TABLE groups ADD CONSTRAINT c CHECK (end_user <> 'canary-user') NOT VALID")
    with pytest.raises(StoreError) as raised:
        asyncio.run(store())
    for text in (str(raised.value), raised.value.why, format_traceback(raised.value)):
        assert user not in text
    assert "violates check constraint" in str(raised.value)


def test_a_traceback_says_where_and_by_what_errors() -> None:
    def fail() -> None:
        secret = json.loads('"canary-key"')
        try:
            raise KeyError("outer")
        except KeyError as error:
            raise ValueError(f"first line\n{secret}") from error

    try:
        fail()
    except ValueError as error:
        text = format_traceback(ExceptionGroup("several", [error]))
    for part in ("KeyError: 'outer'", "direct cause", "ValueError: first line", "in fail", "ExceptionGroup: several"):
        assert part in text
    assert "canary-key" not in text


URL = f"http://user:{PASSWORD}@127.0.0.1:1/score"


@pytest.mark.parametrize(
    "given",
    [
        {"service": {"api_key": "canary-key", "admin_key": "canary-key", "tenants": {"acme": {"reward": "unknown"}}}},
        {"service": {"api_key": ["canary-key"]}},
        {"database_password": {"canary-password": 1}},
        {"reward": {"target": "somewhere", "api_key": "canary-key"}},
        {"reward": URL},
        {"reward": {"kind": "http", "target": "http://127.0.0.1:1", "api_key": ["canary-key"]}},
        {"reward": f"judge:{URL}"},
        {"reward": f"http:ftp://user:{PASSWORD}/@127.0.0.1"},
        {"reward": f"http:http://user:{PASSWORD}@["},
        {"engine": "remote", "model": "m", "engine_options": {"servers": [URL]}},
        {"engine": "remote", "model": "m", "engine_options": {"servers": URL}},
        {"engine": "remote", "model": "m", "engine_options": {"servers": {"a": URL}}},
        {"engine": "remote", "model": "m", "engine_options": {"api_key": ["canary-key"]}},
        {"engine": "remote", "model": "m", "engine_options": [{"api_key": "canary-key"}]},
        {"service": {"tenants": [{"reward": {"api_key": "canary-key"}}]}},
        {"reward": [{"target": "http://127.0.0.1:1", "api_key": "canary-key"}]},
        {"reward": f"http:http://user:it's {PASSWORD}@["},
    ],
)
def test_a_setting_that_is_refused_does_not_show_what_is_secret(given: dict[str, Any]) -> None:
    with pytest.raises(UserError) as refused:
        create_app(load_settings(**{"engine": "fake"} | given))
    assert not [secret for secret in SECRETS if secret in str(refused.value)], str(refused.value)


@pytest.mark.parametrize("named", [f"u:{PASSWORD}@127.0.0.1:1/x", f"u@127.0.0.1:1/x?password={PASSWORD}"])
async def test_a_database_that_is_away_does_not_show_the_password_for_it(named: str) -> None:
    with pytest.raises(UserError, match="@127") as refused:
        await Database(f"postgresql+psycopg://{named}").start()
    assert PASSWORD not in str(refused.value)
