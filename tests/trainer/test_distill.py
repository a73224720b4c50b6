"""Tests of offline distillation on the models in the package, also after it was killed while drawing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bonbon.demo.tiny_models import TinyModels
from bonbon.demo.world import requests
from bonbon.engines.engine import Sampling
from bonbon.errors import Conflict, RewardError, UserError
from bonbon.files.manifest import base_digest_of_every_file
from bonbon.pairs.reading.pair_stats import stats
from bonbon.prompt import Prompt
from bonbon.registry.version_records import Version
from bonbon.store.database import open_database
from tests.support.data.loop_world import make_settings
from tests.support.data.sampled_groups import make_base
from trainer.context import open_context
from trainer.data.prompt_file import read_prompts
from trainer.distill import distill, locked

COUNT = 72


def command(models: TinyModels, prompts: Path, out: Path) -> list[str]:
    options = {"model": models.policy, "reward": models.reward, "prompts": prompts, "out": out, "n": 4}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "bonbon", "distill", *flags, "--max-tokens", "24"]


ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "BONBON_ENGINE_OPTIONS": '{"threads": 1}',
    "BONBON_TRAIN__THREADS": "1",
    "BONBON_TRAIN__MIN_PAIRS": "16",
    "BONBON_TRAIN__BATCH_SIZE": "16",
    "BONBON_TRAIN__EPOCHS": "2",
    "BONBON_TRAIN__HELD_OUT_FRACTION": "0.2",
    "BONBON_TRAIN__REFINE": "off",
    "BONBON_EVALUATE__PROMPTS": "8",
}


def groups_in(database: Path) -> dict[str, Any]:
    """Returns each logged group's time by id."""
    import sqlite3

    if not database.exists():
        return {}
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        try:
            return dict(connection.execute("SELECT id, time FROM groups").fetchall())
        except sqlite3.OperationalError:  # not migrated yet
            return {}


def test_killed_while_drawing_it_goes_on_without_drawing_twice(tiny_models: TinyModels, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n".join(requests(3, COUNT)) + "\n")
    with (tmp_path / "first.log").open("w") as log:
        process = subprocess.Popen(command(tiny_models, prompts, out), env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            while not (before := groups_in(out / "bonbon.db")):
                assert process.poll() is None, (tmp_path / "first.log").read_text()
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL
    before = groups_in(out / "bonbon.db")
    assert 0 < len(before) < COUNT
    assert not (out / "round.json").exists()

    done = subprocess.run(
        command(tiny_models, prompts, out), env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=800
    )
    assert done.returncode == 0, done.stderr
    after = groups_in(out / "bonbon.db")
    assert len(after) == COUNT
    assert before.items() <= after.items()
    evaluation = json.loads((out / "evaluation.json").read_text())
    version = evaluation["version"]
    assert version.startswith("tiny-support-bonbon-0001-")
    assert evaluation["n"] == 4
    assert (out / "output" / "adapter_model.safetensors").is_file()
    assert version in (out / "report.html").read_text()
    assert version in done.stdout
    assert json.loads((out / "snapshot" / "snapshot.json").read_text())["groups"] > COUNT * 0.9

    written = (out / "output" / "adapter_model.safetensors").stat().st_mtime_ns
    again = subprocess.run(
        command(tiny_models, prompts, out), env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=800
    )
    assert again.returncode == 0, again.stderr
    assert groups_in(out / "bonbon.db") == after
    assert (out / "output" / "adapter_model.safetensors").stat().st_mtime_ns == written


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


PROMPTS = [Prompt(token_ids=(2, 3 + i % 30, 4 + i // 30)) for i in range(60)]
SAMPLING = Sampling(max_tokens=8, seed=0)


async def attempt(base: Path, out: Path, prompts: list[Prompt] = PROMPTS, **changes: Any) -> Version:
    settings = make_settings(base, out, evaluate={"prompts": 6}, **changes)
    async with open_context(settings, progress=False) as context:
        return await distill(context, out, prompts, SAMPLING)


async def test_a_failing_reward_keeps_what_was_drawn_and_another_task_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"prompt \d+: .*the reward is away.*are kept"):
        await attempt(base, tmp_path, reward="python:tests.trainer.test_distill:away_after_a_while")
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        kept = (await stats(database)).groups
    assert 0 < kept < 60
    with pytest.raises(UserError, match=r"holds another distillation .*n 8 -> 3"):
        await attempt(base, tmp_path, n=3, reward="python:tests.trainer.test_distill:away_after_a_while")
    away_after_a_while.calls = -1000  # type: ignore[attr-defined]
    version = await attempt(base, tmp_path, reward="python:tests.trainer.test_distill:away_after_a_while")
    assert version.training["groups"] + 0 > kept
    assert version.evaluation["prompts"] == 6


async def test_a_base_that_an_earlier_release_recorded_is_known_again(base: Path, tmp_path: Path) -> None:
    """The earlier digest covered every file. The reward is back at first and fails again after some more groups."""
    out, task = tmp_path / "out", tmp_path / "out" / "distill.json"

    async def fails(error: type[Exception], message: str) -> None:
        away_after_a_while.calls = 0  # type: ignore[attr-defined]
        with pytest.raises(error, match=message):
            await attempt(base, out, reward="python:tests.trainer.test_distill:away_after_a_while")

    await fails(RewardError, "the reward is away")
    today = json.loads(task.read_text())
    task.write_text(json.dumps(today | {"base_digest": base_digest_of_every_file(base)}))
    await fails(RewardError, "the reward is away")
    assert json.loads(task.read_text()) == today
    task.write_text(json.dumps(today | {"base_digest": "0" * 64}))
    await fails(UserError, "holds another distillation .*base_digest")


async def test_too_few_prompts_are_refused_before_anything_is_drawn(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"20 prompts leave \d+ to train on, fewer than 32"):
        await attempt(base, tmp_path / "few", PROMPTS[:20])
    with pytest.raises(UserError, match="keeps 0 of the different prompts to measure on"):
        await attempt(base, tmp_path / "same", PROMPTS[:1] * 60, train={"held_out_fraction": 1e-9})
    assert not (tmp_path / "few" / "distill.json").exists()


async def test_modules_that_cannot_be_trained_are_refused_before_anything_is_drawn(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lora_targets = 'no_such_proj' cannot be trained on this model"):
        await attempt(base, tmp_path, train={"lora_targets": "no_such_proj"})
    assert not (tmp_path / "distill.json").exists()


async def test_a_reward_that_cannot_score_is_named_before_anything_is_drawn(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"cannot score a short answer: .*the reward is away"):
        await attempt(base, tmp_path, reward="python:tests.trainer.test_distill:away")
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        assert (await stats(database)).groups == 0


async def test_draws_of_the_policy_that_no_engine_can_make_are_refused_before_anything_is_drawn(
    base: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="refine = 'on', but a fleet of servers loads only adapters"):
        await attempt(base, tmp_path, engine="remote", engine_options={}, train={"refine": "on", "method": "full"})
    assert not (tmp_path / "distill.json").exists()


async def test_a_token_budget_without_a_step_is_refused_before_training_and_a_higher_one_goes_on(
    base: Path, tmp_path: Path
) -> None:
    train = {"refine": "on", "validation_fraction": 0.2, "min_pairs": 16}
    with pytest.raises(UserError, match=r"refine = 'on', but train\.refine_tokens = 500 is less than \d+, .*raise it"):
        await attempt(base, tmp_path, train=train | {"refine_tokens": 500})
    assert not (tmp_path / "run.json").exists()
    version = await attempt(base, tmp_path, train=train | {"refine_tokens": 8_000})
    assert version.training["metrics"]["drawn_tokens"] > 0


async def test_an_engine_that_is_not_installed_is_named_before_anything_is_drawn(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"the vLLM engine needs vllm\S*, which is not installed"):
        await attempt(base, tmp_path, engine="vllm", engine_options={})
    assert not (tmp_path / "distill.json").exists()


async def test_one_process_at_a_time(base: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(Conflict, match="another process is distilling"):
        await attempt(base, tmp_path)


def away_after_a_while(prompt: Prompt, completions: list[str]) -> list[float]:
    """Scores thirty groups, then fails."""
    from tests.support.data.sampled_groups import score

    away_after_a_while.calls = getattr(away_after_a_while, "calls", 0) + 1  # type: ignore[attr-defined]
    if away_after_a_while.calls > 30:  # type: ignore[attr-defined]
        raise ConnectionError("the reward is away")
    return score(prompt, completions)


def away(prompt: Prompt, completions: list[str]) -> list[float]:
    raise ConnectionError("the reward is away")


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]


def test_prompts_in_every_format(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("Hello?\n\n  Where is it? \n")
    assert read_prompts(text) == [Prompt.user("Hello?"), Prompt.user("Where is it?")]
    assert read_prompts(text, plain=True) == [Prompt(text="Hello?"), Prompt(text="Where is it?")]
    rows = [{"prompt": "Hello?\u2028Anybody?"}, {"messages": CHAT}, {"prompt": CHAT}]
    chat = Prompt.chat(*CHAT)  # type: ignore[arg-type]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    assert read_prompts(lines) == [Prompt.user("Hello?\u2028Anybody?"), chat, chat]
    for name, column in (("prompt", ["Hello?", "Where?"]), ("messages", [CHAT, CHAT])):
        table = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({name: column, "other": [1, 2]}), table)
        assert read_prompts(table)[0] == (Prompt.user("Hello?") if name == "prompt" else chat)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "contains no prompt"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"', "line 2 is not valid JSON"),
        ("a.jsonl", '{"prompt": "a"}\n{"question": "b"}', "line 2: expected a text"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "line 1: expected a text"),
        ("a.jsonl", "[1]", "line 1: expected a text"),
        ("a.parquet", "no table", "is not a readable Parquet file"),
        ("nowhere/a.txt", None, "cannot be read"),
    ],
)
def test_what_is_no_prompt_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_prompts(path)
