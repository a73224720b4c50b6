"""A model that cannot be loaded ends `bonbon serve`, with the reason; what may pass by itself is waited for."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bonbon.demo.tiny_models import TinyModels
from bonbon.engines import build_engine
from bonbon.engines.fake_engine import FakeEngine
from bonbon.errors import EngineError, UserError
from bonbon.rewards import build_reward
from bonbon.settings import RewardSpec, Settings
from service.app import create_app
from service.http_server.server import run_server
from tests.support.service.running_service import BASE, settings_in


def cut_config(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama", ')


def list_config(model: Path) -> None:
    (model / "config.json").write_text("[]")


def lose_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def poison(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut config": (cut_config, r"config\.json cannot be read as JSON \(.*line 1 column"),
    "config of another kind": (list_config, r"config\.json is not a JSON object"),
    "no tokenizer": (lose_tokenizer, r"has no tokenizer; save the model's tokenizer beside its weights"),
    "NaN": (poison, r"model\.layers\.0\.mlp\.up_proj\.weight has NaN or infinite weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_policy_that_cannot_be_loaded_is_named_for_what_it_is(
    fault: str, tiny_models: TinyModels, tmp_path: Path
) -> None:
    spoil, message = FAULTS[fault]
    spoil(shutil.copytree(tiny_models.policy, tmp_path / "model"))
    with pytest.raises(UserError, match=message):
        await build_engine(Settings(model=str(tmp_path / "model")), base="model").start()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_reward_that_cannot_be_loaded_is_named_for_what_it_is(
    fault: str, tiny_models: TinyModels, tmp_path: Path
) -> None:
    spoil, message = FAULTS[fault]
    spoil(shutil.copytree(tiny_models.reward, tmp_path / "model"))
    with pytest.raises(UserError, match=message):
        await build_reward(RewardSpec(kind="classifier", target=str(tmp_path / "model"))).start()


def test_the_process_ends_with_the_reason(tiny_models: TinyModels, tmp_path: Path) -> None:
    poison(shutil.copytree(tiny_models.policy, tmp_path / "model"))
    command = [sys.executable, "-m", "bonbon", "serve", "--model", str(tmp_path / "model"), "--reward", "length:"]
    done = subprocess.run(
        [*command, "--port", "0", "--data-dir", str(tmp_path / "data")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "error: model" in done.stderr
    assert "NaN or infinite weights" in done.stderr
    assert "Traceback" not in done.stderr


class FailsInTurn(FakeEngine):
    """Raises `problems` one after the other, each time that it is started, and then the last one for ever."""

    def __init__(self, *problems: Exception) -> None:
        super().__init__(BASE)
        self.problems = list(problems)
        self.tries = 0

    async def start(self) -> None:
        self.tries += 1
        raise self.problems.pop(0) if len(self.problems) > 1 else self.problems[0]


@pytest.mark.parametrize("before", [0, 2])
async def test_the_server_ends_as_soon_as_the_engine_can_never_start(before: int, tmp_path: Path) -> None:
    """At once, or after it has waited for what could have passed by itself."""
    engine = FailsInTurn(*[EngineError("no server answers")] * before, UserError("the model is broken"))
    app = create_app(settings_in(tmp_path), engine=engine)
    app.state.bonbon.startup.retry = 0.01
    listening: list[str] = []
    async with asyncio.timeout(60):
        with pytest.raises(UserError, match="the model is broken"):
            await run_server(app, host="127.0.0.1", port=0, drain_timeout=5, ready=listening.append)
    assert engine.tries == before + 1
    assert len(listening) == (1 if before else 0)
