"""Every program in examples/ runs as it is written; `make examples` also has TRL train and Jupyter execute."""

import ast
import asyncio
import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from starlette.responses import JSONResponse
from torch import manual_seed
from typer.testing import CliRunner

from bonbon import BestOfN, Prompt
from bonbon.cli.pairs_cli import app as pairs_app
from bonbon.demo.tiny_models import TinyModels
from bonbon.engines.fake_engine import FakeEngine
from bonbon.pairs.pair_log import PairLog
from bonbon.rewards import build_reward
from bonbon.settings import RewardSpec
from bonbon.store.database import open_database
from tests.support.paths import ROOT
from tests.support.servers.scripted_server import serving

EXAMPLES = ROOT / "examples"
QUESTION = Prompt.user("My lamp arrived broken. Can you help?")


def run(name: str, *arguments: object) -> str:
    """What an example writes, in a process of its own."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def test_the_page_lists_every_example() -> None:
    listed = set(re.findall(r"\]\((\w+\.(?:py|ipynb))\)", (EXAMPLES / "README.md").read_text()))
    assert listed == {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}


def test_library() -> None:
    rewards = [float(line.split()[0]) for line in run("library.py").splitlines()]
    assert len(rewards) == 8
    assert rewards == sorted(rewards, reverse=True)


async def served_by(target: RewardSpec) -> BestOfN:
    return BestOfN(FakeEngine(), build_reward(target))


@pytest.mark.usefixtures("importable")
async def test_python_reward() -> None:
    async with await served_by(RewardSpec(kind="python", target="python_reward:score")) as best_of_n:
        group = (await best_of_n(QUESTION, 4)).group
        assert group.degraded is None
        right, long, sorry = await best_of_n.score(QUESTION, ["word " * 25, "word " * 50, "sorry " * 25])
    assert right == 0
    assert long == -1
    assert sorry == -24


@pytest.mark.usefixtures("importable")
def test_http_reward_keeps_the_contract() -> None:
    from http_reward import app  # type: ignore[import-not-found]

    with (
        TestClient(app) as client,
        serving(lambda body: JSONResponse(client.post("/score", json=body).json())) as server,
    ):

        async def scores() -> list[float]:
            async with await served_by(RewardSpec(kind="http", target=server.url)) as best_of_n:
                return await best_of_n.score(QUESTION, ["Can you send a photo?", "Your lamp arrived broken.", "No."])

        assert asyncio.run(scores()) == [2 / 7, 3 / 7, 0]


@pytest.mark.usefixtures("importable")
async def test_judge_rubric(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(body: dict[str, Any]) -> JSONResponse:
        asked = body["messages"][-1]["content"]
        yes = 0.75 if "next?" in asked else 0.5 if "problem?" in asked else 0.25
        tops = [
            {"token": token, "logprob": math.log(chance), "bytes": None}
            for token, chance in (("Yes", yes), (" no", 1 - yes))
        ]
        logprobs = {"content": [tops[0] | {"top_logprobs": tops}], "refusal": None}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "Yes"},
            "finish_reason": "stop",
            "logprobs": logprobs,
        }
        return JSONResponse(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "judge", "choices": [choice]}
        )

    with serving(judge) as server:
        monkeypatch.setenv("JUDGE_URL", f"{server.root}/v1")
        monkeypatch.setenv("JUDGE_MODEL", "judge")
        async with await served_by(RewardSpec(kind="python", target="judge_rubric:score")) as best_of_n:
            assert await best_of_n.score(QUESTION, ["A new lamp is on its way."]) == pytest.approx([1.5])
        assert len(server.requests) == 3
        assert all("A new lamp is on its way." in request["messages"][1]["content"] for request in server.requests)


async def logged(directory: Path, count: int = 8) -> Path:
    """A data directory with a pair log of so many groups."""
    async with (
        open_database(f"sqlite+aiosqlite:///{directory / 'bonbon.db'}") as database,
        await served_by(RewardSpec(kind="length", target="2")) as best_of_n,
    ):
        log = PairLog(database)
        await log.start()
        for number in range(count):
            await log.append((await best_of_n(Prompt.user(f"Question {number}?"), 4)).group)
        await log.stop()
    return directory


def test_pairs_for_trl(tmp_path: Path) -> None:
    """`prompt`, `chosen` and `rejected` are TRL's conversational preferences, with an explicit prompt."""
    asyncio.run(logged(tmp_path))
    file = tmp_path / "pairs.parquet"
    done = CliRunner().invoke(pairs_app, ["export", "--format", "parquet", str(file), "--data-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (columns,) = re.findall(r"select_columns\((\[.*?\])\)", (EXAMPLES / "trl_dpo.py").read_text())
    rows = pq.read_table(file, columns=ast.literal_eval(columns)).to_pylist()
    assert len(rows) > 4
    for row in rows:
        assert [message["role"] for message in row["prompt"]] == ["user"]
        assert [message["role"] for message in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]
        assert {key for part in row.values() for message in part for key in message} == {"role", "content"}
        assert row["chosen"] != row["rejected"]


def test_serve_elsewhere(tiny_models: TinyModels, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_models.policy)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    assert run("serve_elsewhere.py", tiny_models.policy, tmp_path, "My lamp arrived broken.").strip()


async def test_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, one after the other in one namespace, as Jupyter runs them."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    notebook = json.loads((EXAMPLES / "curve.ipynb").read_text())
    scope: dict[str, Any] = {}
    axes = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"], "clear the notebook's outputs"
        source = "".join(cell["source"]).replace("PROMPTS, N = 40, 8", "PROMPTS, N = 6, 4")
        waiting = eval(compile(source, cell["id"], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), scope)
        if inspect.isawaitable(waiting):
            await waiting
        axes += [axis.get_ylabel() for figure in map(plt.figure, plt.get_fignums()) for axis in figure.axes]
        plt.close("all")
    assert axes == ["expected reward of best-of-k", "win rate against one draw"]
    assert scope["curve"].groups == 6
