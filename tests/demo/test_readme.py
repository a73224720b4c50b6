"""The README's examples, and those on serving elsewhere, run as they are written (only the port is another one)."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bonbon.demo.service_process import ServiceProcess
from bonbon.demo.tiny_models import TinyModels
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.settings import Settings
from tests.support.paths import ROOT

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def block(start: str) -> str:
    found: list[str] = [text for _, text in BLOCKS if text.startswith(start)]
    return found[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("readme")
    environment = {
        "BONBON_MODEL": str(tiny_models.policy),
        "BONBON_REWARD": str(tiny_models.reward),
        "BONBON_DATA_DIR": str(directory / "data"),
        "OMP_NUM_THREADS": "1",
    }
    process = ServiceProcess(environment, directory / "service.log")
    await process.start()
    yield process
    await process.stop()


def run(arguments: list[str], script: str, service: ServiceProcess) -> str:
    script = script.replace("http://127.0.0.1:8080", service.url)
    done = subprocess.run([*arguments, script], capture_output=True, text=True, timeout=120, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.asyncio(loop_scope="module")
async def test_curl(service: ServiceProcess) -> None:
    answered = run(["bash", "-c"], block("curl http://127.0.0.1:8080/v1/chat/completions"), service)
    assert '"finish_reason":"stop"' in answered
    assert '"version":"tiny-support"' in answered


@pytest.mark.asyncio(loop_scope="module")
async def test_the_best_of_k_of_any_server(service: ServiceProcess) -> None:
    page = (ROOT / "docs" / "serve_elsewhere.md").read_text()
    (function,) = re.findall(r"^```python\n(def best_of_k.*?)^```", page, re.MULTILINE | re.DOTALL)
    client = "from openai import OpenAI\nclient = OpenAI(base_url='http://127.0.0.1:8080/v1', api_key='none')\n"
    messages = "[{'role': 'user', 'content': 'My lamp arrived broken.'}]"
    lengths = "seen = []\ndef reward(messages, answer):\n    seen.append(len(answer))\n    return len(answer)\n"
    asking = f"answer = best_of_k(client, reward, {messages}, 3)\nprint(len(seen), len(answer) == max(seen))"
    script = client + function.replace("support-v1", "base") + lengths + asking
    assert run([sys.executable, "-c"], script, service) == "3 True\n"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_openai_client(service: ServiceProcess) -> None:
    text, extension = run([sys.executable, "-c"], block("from openai import OpenAI"), service).splitlines()
    assert text
    assert "'n': 8" in extension


def run_on_tiny_models(script: str, tiny_models: TinyModels) -> str:
    for name, directory in (("model", tiny_models.policy), ("reward", tiny_models.reward)):
        script = script.replace(f"path/of/{name}", str(directory))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_best_of_n_as_a_library(tiny_models: TinyModels) -> None:
    told = run_on_tiny_models(block("import asyncio"), tiny_models)
    assert float(told.split()[-1]) == pytest.approx(8 / 9)


def test_best_of_n_as_a_stream(tiny_models: TinyModels) -> None:
    (script,) = blocks("library.md", "python")
    *deltas, best = run_on_tiny_models(script, tiny_models).splitlines()
    texts = [""] * 4
    for delta in deltas:
        index, text = delta.split(" ", 1)
        texts[int(index)] += text
    assert best.removeprefix("best: ") in texts


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("start.md", "toml"))))
def test_the_settings_to_start_with_are_valid(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_reward.py").write_text(blocks("start.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    settings = Settings(**tomllib.loads(blocks("start.md", "toml")[number]))
    assert settings.reward is not None
    build_reward(settings.reward)


def test_the_starter_reward_prefers_what_it_says(tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    exec(blocks("start.md", "python")[0], scope)
    asked = Prompt.user("Answer in JSON with the field city: where is the Eiffel Tower?")
    good, long, none = scope["score"](asked, ['{"city": "Paris"}', '{"city": "Paris"}' + " " * 2000 + ".", "Paris"])
    assert good > long
    assert good > none
