"""The `bonbon` command as a process: its commands and its error messages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bonbon import __version__


def bonbon(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m bonbon` in `directory`, with no settings but those given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BONBON_")}
    return subprocess.run(
        [sys.executable, "-m", "bonbon", *arguments],
        cwd=directory,
        env={**inherited, "COLUMNS": "200", "TERM": "dumb", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_tells_its_version(tmp_path: Path) -> None:
    done = bonbon(tmp_path, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"bonbon {__version__}\n", "")


def test_help_lists_the_commands_of_both_halves(tmp_path: Path) -> None:
    done = bonbon(tmp_path, "--help")
    assert done.returncode == 0
    for command in ("demo", "evaluate", "loop", "models", "pairs", "serve", "train"):
        assert f" {command} " in done.stdout


def test_a_users_own_modules_are_not_taken_for_the_packages(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text("raise SystemExit('this is the user's own module')\n")
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").write_text("raise SystemExit('this is the user's own package')\n")
    for command in ("serve", "train"):
        done = bonbon(tmp_path, command, "--help")
        assert (done.returncode, done.stderr) == (0, "")


def test_without_a_command_it_shows_the_help(tmp_path: Path) -> None:
    done = bonbon(tmp_path)
    assert "Usage: " in done.stdout + done.stderr
    assert "models" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("models", "list"), {}, "error: there is no database {}/data/bonbon.db; `bonbon serve` creates it"),
        (("pairs", "stats", "--database", "mysql://x"), {}, "error: database_url begins with 'mysql'"),
        (("pairs", "purge", "--older-than", "[/soon]"), {}, "error: --older-than is '[/soon]': give a number"),
        (("models", "list"), {"BONBON_MODLE": "x"}, "error: settings: BONBON_MODLE: there is no such setting"),
        (("models", "list"), {"BONBON_CONFIG": "gone.toml"}, "error: BONBON_CONFIG is 'gone.toml', but there is no"),
        (("pairs", "stats"), {"BONBON_N": "[bold]"}, "error: settings: n = '[bold]': Input should be a valid integer"),
    ],
)  # fmt: skip
def test_what_the_user_can_mend_is_one_line_and_exit_status_2(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    done = bonbon(tmp_path, *arguments, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message.format(tmp_path))
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("serv",), ("models", "lst"), ("models", "show"), ("pairs", "stats", "--jsn")])
def test_what_is_no_command_is_exit_status_2_too(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = bonbon(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr
