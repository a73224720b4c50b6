"""Popular client libraries, each in its own environment.

They are openai 2, LangChain on openai 2 and 3, LlamaIndex, the Agents SDK, instructor, pydantic-ai and lm_eval.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bonbon.demo.tiny_models import tiny_models
from bonbon.engines.fake_engine import FakeEngine
from tests.support.paths import ROOT
from tests.support.service.api import Server, longest, serve
from tests.support.service.calling_engine import CallingEngine
from tests.support.service.embedded_api import serve_embedded
from tests.support.service.tool_templates import HERMES

OPENAI_3 = ROOT / "tests" / "clients" / "requirements-openai-3.txt"


@pytest.fixture(scope="session")
def python() -> Path:
    """Returns the interpreter of an environment with the clients: CLIENTS_PYTHON, or one that is created once."""
    given = os.environ.get("CLIENTS_PYTHON")
    if given:
        return Path(given)
    subprocess.run(["make", "--silent", "clients", f"PYTHON={sys.executable}"], cwd=ROOT, check=True)
    return ROOT / ".venv-clients" / "bin" / "python"


@pytest.fixture(scope="session")
def openai3(python: Path) -> Path:
    """Returns a directory with openai 3 and its dependencies; on PYTHONPATH it hides the older version."""
    directory = python.parents[1] / "openai-3"
    if not (directory / "agents").exists():
        shutil.rmtree(directory, ignore_errors=True)
        pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, "--target", str(directory), "--requirement", str(OPENAI_3)], check=True)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("data"), engine=FakeEngine(delay=0.001), api_key="secret") as running:
        # The longer the better: the fake engine may well draw an empty text, which is then not the answer.
        running.reward.function = longest
        yield running


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("calling"), engine=CallingEngine(delay=0.001), api_key="secret") as running:
        running.reward.function = longest
        yield running


@pytest.mark.parametrize("name", ["openai", "langchain", "llamaindex"])
def test_a_client_on_openai_2(server: Server, python: Path, name: str) -> None:
    passed = check(server.url, python, name)
    assert "openai 2." in passed or name == "llamaindex"


def test_langchain_on_openai_3(server: Server, python: Path, openai3: Path) -> None:
    assert "on openai 3." in check(server.url, python, "langchain", PYTHONPATH=str(openai3))


def test_agents_on_openai_3(calling: Server, python: Path, openai3: Path) -> None:
    assert "on openai 3." in check(calling.url, python, "agents", PYTHONPATH=str(openai3))


def test_structured_outputs_and_tools_on_the_embedded_engine(tmp_path: Path, python: Path) -> None:
    # A short prompt leaves room in the small context for as many calls as there may be.
    template = HERMES.replace("{{ tool | tojson }}", "{{ tool.function.name }}")
    with serve_embedded(tmp_path, chat_template=template, api_key="secret") as url:
        passed = check(url, python, "structured")
    assert "instructor" in passed


def test_lm_eval_measures_what_it_measures_without_the_service(tmp_path: Path) -> None:
    subprocess.run(["make", "--silent", ".venv-lm-eval/.stamp"], cwd=ROOT, check=True)
    python = ROOT / ".venv-lm-eval" / "bin" / "python"
    with serve_embedded(tmp_path, chat_template=HERMES, api_key="secret") as url:
        figures = check(url, python, "lm_eval", str(tiny_models().policy), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    assert "support_perplexity byte_perplexity" in figures


def check(url: str, python: Path, name: str, *arguments: str, **environment: str) -> str:
    """Returns the output of the client's script, which must succeed."""
    script = ROOT / "tests" / "clients" / f"check_{name}.py"
    done = subprocess.run(
        [python, script, f"{url}/v1", "secret", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
