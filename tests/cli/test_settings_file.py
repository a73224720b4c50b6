"""`bonbon init`: the file that it writes can be loaded and shows every default."""

import re
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bonbon.cli.init import init, settings_file
from bonbon.errors import UserError
from bonbon.settings import Settings, load_settings

app = typer.Typer()
app.command()(init)


def test_the_file_sets_what_was_given_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["--model", 'a "base"', "--reward", "http://127.0.0.1:9/score"])
    assert done.exit_code == 0
    assert done.stdout.startswith("Wrote bonbon.toml. Check it with `bonbon doctor`")
    settings, other = load_settings(), Settings(model='a "base"', reward="http://127.0.0.1:9/score")
    assert settings == other
    refused = CliRunner().invoke(app, ["--model", "base", "--reward", "length"])
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception) == "bonbon.toml already exists: delete it, or name another file with --path"
    assert load_settings() == settings


def test_every_default_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = settings_file(model="base", reward="length")
    shown = re.sub(r"(?m)^# (\w+ = )", r"\1", written)
    (tmp_path / "bonbon.toml").write_text(shown)
    assert load_settings() == Settings(model="base", reward="length")
    found = tomllib.loads(shown)
    assert set(found["gate"]) == set(type(Settings().gate).model_fields)


def test_every_setting_is_there_with_what_it_is_for() -> None:
    written = settings_file(model="base", reward="length")
    names = re.findall(r"(?m)^#? ?(\w+) =", written)
    assert {"model", "n", "port", "max_wait", "loss", "margin", "min_groups"} <= set(names)
    for line in written.splitlines():
        assert len(line) <= 400
    assert "# Number of candidates that best-of-n samples.\n# n = 8\n" in written
