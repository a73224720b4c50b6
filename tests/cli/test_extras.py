"""Error messages of commands that need an optional package, in a process where that package is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from bonbon.cli.main import main
sys.argv = ["bonbon", *{arguments!r}]
main()
"""


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (["demo", "--exit"], ["openai"], "demo"),
        (["demo", "--exit"], ["torch", "transformers"], "demo"),
        (["demo", "--exit"], ["jinja2"], "demo"),
        (["train", "--model", "unused"], ["accelerate"], "train"),
        (["serve", "--engine", "fake", "--reward", "owner/name", "--data-dir", "{tmp}"], ["torch"], "embedded"),
        (["serve", "--engine", "vllm", "--model", "owner/name"], ["vllm"], "vllm"),
        (["serve", "--model", "owner/name"], ["huggingface_hub"], "embedded"),
        (["pairs", "curve", "--png", "curve.png"], ["matplotlib"], "train"),
        (["models", "list", "--database", "postgresql+psycopg://nobody@127.0.0.1:1/none"], ["psycopg"], "postgres"),
    ],
)
def test_a_command_names_what_is_missing_and_what_to_install(
    arguments: list[str], missing: list[str], extra: str, tmp_path: Path
) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(missing=missing, arguments=arguments)], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert all(name in said for name in missing)
    assert f"pip install 'bonbon-serve[{extra}]'" in said
