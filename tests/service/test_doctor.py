"""`bonbon doctor`: its findings for a working installation and for each missing or broken part."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bonbon.cli.keys_cli import app as keys
from bonbon.demo.tiny_models import tiny_models
from service.doctor.doctor_cli import doctor
from tests.support.paths import ROOT

app = typer.Typer()
app.command()(doctor)


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sets the environment of a service that can start: the shipped models and a free port."""
    models = tiny_models()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        "MODEL": models.policy,
        "REWARD": models.reward,
        "HELD_OUT_REWARD": models.held_out_reward,
        "DATA_DIR": tmp_path / "data",
        "SERVICE__PORT": port,
    }
    for name, value in given.items():
        monkeypatch.setenv(f"BONBON_{name}", str(value))
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def examined(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["--json", *arguments])
    # Before it are lines of the log, which go to standard error where the command runs as a process of its own.
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert done.exit_code == (1 if found["problems"] else 0)
    return {finding["check"]: finding for finding in found["findings"]}


def test_nothing_is_wrong_with_what_ships(tmp_path: Path) -> None:
    found = examined("--draw")
    states = {check: finding["state"] for check, finding in found.items() if check != "device"}
    assert set(states.values()) == {"good"}, found
    assert found["engine"]["text"].startswith("embedded started in ")
    assert "bonbon.db when it starts" in found["database"]["text"]
    assert not (tmp_path / "data").exists()
    printed = CliRunner().invoke(app, []).stdout
    assert "nothing keeps the service from answering" in printed
    assert "served as 'tiny-support'" in printed


@pytest.mark.parametrize(
    ("check", "name", "value", "said"),
    [
        ("model", "MODEL", "", "no model is configured; set model (BONBON_MODEL)"),
        ("model", "MODEL", "./missing", "is not an existing directory"),
        ("model", "MODEL", ".", "has no config.json"),
        ("reward", "REWARD", "http://127.0.0.1:9/score", "cannot score a short answer"),
        ("reward", "REWARD", "python:nothing_like_it:score", "nothing_like_it"),
        ("held_out_reward", "HELD_OUT_REWARD", "http://127.0.0.1:9/score", "cannot score a short answer"),
        ("database", "DATABASE_URL", "sqlite+aiosqlite:////nowhere/at/all.db", "/nowhere/at/all.db"),
        ("disk", "DATA_DIR", "/dev/null/data", "cannot be written to"),
        ("keys", "SERVICE__HOST", "0.0.0.0", "make one with `bonbon keys create NAME`"),
    ],
)
def test_what_keeps_the_service_from_answering_is_a_problem(
    settings: pytest.MonkeyPatch, check: str, name: str, value: str, said: str
) -> None:
    settings.setenv(f"BONBON_{name}", value)
    found = examined()
    assert found[check]["state"] == "problem"
    assert said in found[check]["text"]


def test_an_engine_that_is_not_installed_is_a_problem_before_its_model_is_downloaded(
    settings: pytest.MonkeyPatch,
) -> None:
    settings.setenv("BONBON_ENGINE", "vllm")
    settings.setenv("BONBON_MODEL", "nobody/has-this-model")
    settings.setitem(sys.modules, "vllm", None)
    found = examined()
    assert found["model"]["state"] == "problem"
    assert found["model"]["text"] == "the engine 'vllm' needs vllm: run pip install 'bonbon-serve[vllm]'"


def test_no_lines_of_the_log_are_among_the_findings() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bonbon", "doctor", "--reward", "http://127.0.0.1:9/score"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot score a short answer" in done.stdout
    assert "[warning" not in done.stderr


def test_a_port_that_is_taken_is_a_problem(settings: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings.setenv("BONBON_SERVICE__PORT", str(port))
        found = examined()
    assert found["port"]["state"] == "problem"
    assert f"127.0.0.1:{port}" in found["port"]["text"]


def test_a_base_without_a_chat_template_and_an_unguarded_service_are_warnings(
    settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in tiny_models().policy.iterdir():
        if "template" not in file.name:
            (plain / file.name).symlink_to(file)
    settings.setenv("BONBON_MODEL", str(plain))
    settings.setenv("BONBON_SERVICE__HOST", "0.0.0.0")
    settings.setenv("BONBON_SERVICE__AUTH", "off")
    settings.delenv("BONBON_HELD_OUT_REWARD")
    found = examined()
    warned = {check for check, finding in found.items() if finding["state"] == "warning"}
    assert {"model", "held_out_reward", "keys"} <= warned
    assert "save a chat_template.jinja" in found["model"]["text"]


@pytest.mark.parametrize("name", ["nobody-has-this-model", "nobody/has-this-model"])
def test_a_model_on_the_hub_is_not_fetched(settings: pytest.MonkeyPatch, name: str) -> None:
    settings.setenv("BONBON_MODEL", name)
    found = examined()
    assert found["model"]["state"] == "warning"
    assert found["model"]["text"] == f"{name} is not a directory here: it is downloaded from the model hub"


def test_keys_that_are_there_are_counted(settings: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(keys, ["create", "someone"]).exit_code == 0
    settings.setenv("BONBON_SERVICE__HOST", "0.0.0.0")
    found = examined()
    assert found["keys"] == {"check": "keys", "state": "good", "text": "requests need a key; keys that were made: 1"}
    assert found["database"]["text"].endswith("answers, and its tables are this release's")
