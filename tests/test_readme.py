"""The README's examples, and those on serving elsewhere, run as they are written (only the port is another one)."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bonbon.best_of_n import BestOfN
from bonbon.demo.models import TinyModels
from bonbon.demo.service import ServiceProcess
from bonbon.engines import build_engine
from bonbon.rewards import build_reward
from bonbon.settings import RewardSpec, Settings

ROOT = Path(__file__).parent.parent
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


async def test_best_of_n_as_a_library(tiny_models: TinyModels) -> None:
    settings = Settings(model=str(tiny_models.policy), engine_options={"threads": 1})
    engine = build_engine(settings, base="tiny")
    reward = build_reward(RewardSpec(kind="classifier", target=str(tiny_models.reward)))
    await engine.start()
    await reward.start()
    lines = [line for line in block("from bonbon import BestOfN").splitlines() if not line.startswith("from ")]
    body = "\n".join(f"    {line}" for line in lines)
    scope: dict[str, object] = {"engine": engine, "reward": reward}
    exec(f"from bonbon import BestOfN, Prompt\nasync def example():\n{body}\n    return best_of_n, answer", scope)
    best_of_n, answer = await scope["example"]()  # type: ignore[operator]
    assert isinstance(best_of_n, BestOfN)
    assert answer.group.best.win_probability == pytest.approx(8 / 9)
    await reward.stop()
    await engine.stop()
