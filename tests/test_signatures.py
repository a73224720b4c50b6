"""The known ways to fail, each provoked by real training, and what is said of them."""

import asyncio
import random
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluations import estimate, evaluation
from loop_world import answer, make_settings
from sampled_groups import make_base
from structlog.testing import capture_logs

from bonbon.prompt import Prompt
from bonbon.settings import Settings
from trainer.context import open_workshop
from trainer.reports.report import write_report
from trainer.reports.signatures import CONTRAST, FLAT, SFT, Signature, signatures
from trainer.rounds import Round
from trainer.training.metrics import latest_metrics, read_metrics


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def logged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 groups of the base, scored by what can be learned."""
    data_dir = tmp_path_factory.mktemp("logged") / "data"
    asyncio.run(answer(make_settings(base, data_dir), 160))
    return data_dir


def noise(prompt: Prompt, completions: Sequence[str]) -> list[float]:
    """A reward that says nothing of one prompt by another."""
    return [random.Random(sha256(f"{prompt.digest}/{text}".encode()).digest()).random() for text in completions]


async def run(settings: Settings) -> tuple[list[Signature], list[Any], dict[str, Any], Path]:
    """Train, evaluate and register; signatures, warnings, the version's training record, the run directory."""
    async with open_workshop(settings, progress=False) as workshop:
        round_ = await Round.create(workshop, settings.runs_dir / "run")
        with capture_logs() as logs:
            measured = await round_.evaluate()
        version = await round_.register()
        warnings = [entry for entry in logs if entry["log_level"] == "warning"]
        return list(signatures(read_metrics(round_.directory), measured)), warnings, version.training, round_.directory


async def assert_told(settings: Settings, name: str) -> list[Signature]:
    """The signature is found, and stands in the log, the record, the metrics and the report, with its remedy."""
    found, warnings, record, directory = await run(settings)
    by_name = {signature.name: signature for signature in found}
    assert name in by_name, by_name
    signature = by_name[name]
    assert {"event": name, "seen": signature.seen, "remedy": signature.remedy, "run": str(directory)}.items() <= next(
        entry for entry in warnings if entry["event"] == name
    ).items()
    assert name in [entry["name"] for entry in record["signatures"]]
    assert latest_metrics(directory)[f"signature_{name}"] == 1
    page = (directory / "report.html").read_text()
    assert name.replace("_", " ") in page
    assert signature.remedy.split(":")[0].replace("'", "&#39;") in page
    return found


async def test_contrast_dominates(base: Path, logged: Path, tmp_path: Path) -> None:
    """The bare contrast, long and fast, on few pairs."""
    shutil.copytree(logged, tmp_path / "data")
    train = {"loss": "ipo", "learning_rate": 2e-2, "epochs": 12}
    found = await assert_told(make_settings(base, tmp_path / "data", train=train), CONTRAST)
    seen = next(signature.seen for signature in found if signature.name == CONTRAST)
    assert "log pi(chosen) fell by" in seen
    assert "best-of-4's at most 0.64" in seen
    assert SFT not in {signature.name for signature in found}


async def test_sft_dominates(base: Path, logged: Path, tmp_path: Path) -> None:
    """The supervised term alone, for a few cautious steps."""
    shutil.copytree(logged, tmp_path / "data")
    train = {"loss": "sft", "learning_rate": 3e-4, "epochs": 3}
    found = await assert_told(make_settings(base, tmp_path / "data", train=train), SFT)
    assert CONTRAST not in {signature.name for signature in found}


async def test_the_win_rate_is_flat_while_kl_grows(base: Path, tmp_path: Path) -> None:
    """A reward that cannot be learned: the policy moves, and wins as often as before."""
    settings = make_settings(base, tmp_path / "data", reward="python:test_signatures:noise")
    await answer(settings, 160)
    await assert_told(settings, FLAT)


def test_nothing_is_said_of_a_good_run(tmp_path: Path) -> None:
    good = evaluation()
    lines = [
        {"step": 0, "epoch": 0.0, "held_out_chosen_logprob": -30.0, "held_out_margin": 0.0},
        {"step": 9, "epoch": 1.0, "margin": 14.0, "target": 18.1},
        {"step": 9, "epoch": 1.0, "held_out_chosen_logprob": -29.0, "held_out_margin": 2.0},
    ]
    assert signatures(lines, good) == ()
    assert signatures([], None) == ()
    good.save(tmp_path)
    assert "What went wrong" not in write_report(tmp_path, Settings().gate).read_text()


def test_figures_are_read_on_the_bound_that_speaks_for_the_version() -> None:
    """Wide intervals accuse nobody; length is told only beside another symptom."""
    assert signatures([], evaluation(kl=estimate(2.0, 0.3), win_rate=estimate(0.93))) == ()
    assert signatures([], evaluation(length_ratio=estimate(2.0, 0.1))) == ()
    (found,) = signatures([], evaluation(kl=estimate(2.2, 0.3), win_rate=estimate(0.93), length_ratio=estimate(2.0)))
    assert found.name == CONTRAST
    assert "2.00 times as long" in found.seen
    (flat,) = signatures([], evaluation(kl=estimate(1.0, 0.1), win_rate=estimate(0.55, 0.02)))
    assert flat.name == FLAT
    assert signatures([], evaluation(kl=estimate(0.04, 0.01), win_rate=estimate(0.5))) == ()


def test_without_held_out_pairs_the_training_pairs_are_read() -> None:
    lines = [{"step": i, "epoch": 0.0, "margin": i / 10, "target": 18.0, "chosen_logprob": -30.0} for i in range(1, 31)]
    (found,) = signatures(lines, None)
    assert found.name == SFT
    assert "2.9 nats, its target 18.0" in found.seen
