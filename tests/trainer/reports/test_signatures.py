"""Tests of the signatures of failed distillations, each provoked by real training."""

import asyncio
import random
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from bonbon.prompt import Prompt
from bonbon.settings import Settings
from tests.support.data.loop_world import answer, make_settings
from tests.support.data.sampled_groups import make_base
from tests.support.models.evaluations import estimate, evaluation
from trainer.context import open_context
from trainer.reports.report import write_report
from trainer.reports.signatures import (
    DEPARTED,
    FLAT,
    HACKED,
    OVERFITTED,
    TRUNCATED,
    UNDERFITTED,
    Signature,
    signatures,
)
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
    """160 groups of the base, scored by a reward that can be learnt."""
    data_dir = tmp_path_factory.mktemp("logged") / "data"
    asyncio.run(answer(make_settings(base, data_dir), 160))
    return data_dir


def noise(prompt: Prompt, completions: Sequence[str]) -> list[float]:
    """A reward whose scores for one prompt reveal nothing about another prompt."""
    return [random.Random(sha256(f"{prompt.digest}/{text}".encode()).digest()).random() for text in completions]


async def run(settings: Settings) -> tuple[list[Signature], list[Any], dict[str, Any], Path]:
    """Trains, evaluates and registers; returns signatures, warnings, the training record and the run directory."""
    async with open_context(settings, progress=False) as context:
        round_ = await Round.create(context, settings.runs_dir / "run")
        with capture_logs() as logs:
            measured = await round_.evaluate()
        version = await round_.register()
        warnings = [entry for entry in logs if entry["log_level"] == "warning"]
        return list(signatures(read_metrics(round_.directory), measured)), warnings, version.training, round_.directory


async def assert_told(settings: Settings, name: str) -> list[Signature]:
    """Checks that the signature with its remedy is found and is in the log, the record, the metrics and the report."""
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


async def test_a_reward_that_cannot_be_learnt_is_learnt_by_heart(base: Path, tmp_path: Path) -> None:
    """The only thing to learn is the noise of the training groups."""
    train = {"refine": "off", "learning_rate": 1e-2, "epochs": 30}
    settings = make_settings(
        base, tmp_path / "data", train=train, reward="python:tests.trainer.reports.test_signatures:noise"
    )
    await answer(settings, 160)
    found = await assert_told(settings, OVERFITTED)
    assert UNDERFITTED not in {signature.name for signature in found}


async def test_a_few_cautious_steps_learn_too_little(base: Path, logged: Path, tmp_path: Path) -> None:
    shutil.copytree(logged, tmp_path / "data")
    train = {"refine": "off", "learning_rate": 1e-5, "epochs": 1}
    found = await assert_told(make_settings(base, tmp_path / "data", train=train), UNDERFITTED)
    assert OVERFITTED not in {signature.name for signature in found}


def steps(count: int = 30, **last: float) -> list[dict[str, float]]:
    """Returns metrics of an offline stage in which every metric rises linearly from 0 to the given value."""
    return [
        {
            "step": step,
            "epoch": step / count,
            "stage": 0,
            **{name: value * step / count for name, value in last.items()},
        }
        for step in range(1, count + 1)
    ]


GOOD_RUN: list[dict[str, float]] = [
    *steps(margin=6.0, validation_margin=5.0),
    {"step": 30, "epoch": 1.0, "stage": 0, "target": 8.0, "validation_gain": 1.5},
    {"step": 30, "epoch": 1.0, "stage": 0, "interpolation_gain": 1.2, "interpolation_share": 0.9},
    # Groups of the policy's own draws have other margins.
    *({"step": 30 + step, "epoch": 2.0, "stage": 1, "margin": 0.5, "target": 4.0} for step in range(20)),
]


def names(metrics: Sequence[dict[str, float]], **changes: Any) -> list[str]:
    return [signature.name for signature in signatures(metrics, evaluation(**changes))]


def test_nothing_is_said_of_a_good_run(tmp_path: Path) -> None:
    good = evaluation()
    assert signatures(GOOD_RUN, good) == ()
    assert signatures([], None) == ()
    good.save(tmp_path)
    assert "What went wrong" not in write_report(tmp_path, Settings().gate).read_text()


def test_a_win_rate_that_is_had_for_far_less_is_flat() -> None:
    """The bounds that favour the version decide, so wide intervals give no signature."""
    (flat,) = signatures([], evaluation(kl=estimate(1.0, 0.1), win_rate=estimate(0.55, 0.02)))
    assert flat.name == FLAT
    assert "0.550 (at most 0.570)" in flat.seen
    assert "1.00 nats from the base (at least 0.90)" in flat.seen
    assert names([], kl=estimate(2.0, 0.3), win_rate=estimate(0.93)) == []
    assert names([], kl=estimate(1.0, 0.99), win_rate=estimate(0.55, 0.02)) == []
    assert names([], kl=estimate(0.04, 0.01), win_rate=estimate(0.5)) == []
    assert names([], kl=estimate(1.0, 0.1), win_rate=estimate(1.0, 0.0)) == []


def test_margins_of_training_groups_far_above_those_of_validation_groups_are_learnt_by_heart() -> None:
    assert names(steps(margin=6.0, validation_margin=1.5)) == [OVERFITTED]
    assert names(steps(margin=6.0, validation_margin=-1.0)) == [OVERFITTED]
    assert names(steps(margin=6.0, validation_margin=2.5)) == []
    assert names(steps(margin=0.9, validation_margin=0.0)) == []  # nothing has been learnt at all
    assert names(steps(margin=6.0)) == []


def test_a_policy_whose_own_draws_do_not_gain_what_logged_groups_promise_has_left_the_base() -> None:
    def run(gain: float, share: float) -> list[dict[str, float]]:
        return [
            {"step": 1, "epoch": 1.0, "validation_gain": 2.0, "interpolation_gain": gain, "interpolation_share": share}
        ]

    (departed,) = signatures(run(0.4, 0.3), evaluation())
    assert departed.name == DEPARTED
    assert "promised a gain of 2.00 nats, and draws of the policy gained 0.40 at 30% of the way" in departed.seen
    assert names(run(0.0, 0.0)) == [DEPARTED]
    assert names(run(0.6, 0.5)) == []


def test_a_margin_far_under_its_target_has_learnt_little() -> None:
    lines = [*steps(margin=1.0), {"step": 30, "epoch": 1.0, "stage": 0, "target": 8.0}]
    (found,) = signatures(lines, None)
    assert found.name == UNDERFITTED
    assert "1.0 nats apart, and the loss asks for 8.0" in found.seen


def test_answers_that_are_cut_off_are_told_with_how_many_tokens_would_do() -> None:
    (found,) = signatures([], evaluation(truncated=0.08, base_truncated=0.14, sufficient_max_tokens=130))
    assert found.name == TRUNCATED
    assert "8% of the version's answers and 14% of the base's were cut off at max_tokens = 96" in found.seen
    assert "about 130 tokens would let nine of ten end" in found.remedy
    assert names([], truncated=0.1, base_truncated=0.1) == []
    assert names([], truncated=0.3) == [TRUNCATED]


def test_a_gain_that_the_held_out_reward_does_not_see_is_reward_hacking() -> None:
    """If best-of-n loses as much of its gain by that reward, the two rewards are unrelated."""
    shares = {"held_out_share": estimate(0.2, 0.1), "best_of_n_held_out_share": estimate(0.8)}
    (found,) = signatures([], evaluation(**shares))
    assert found.name == HACKED
    assert "gains 20% of what it gains by the reward (at most 30%), best-of-8 80%" in found.seen
    assert names([], **(shares | {"best_of_n_held_out_share": estimate(0.5)})) == []
    assert names([], **(shares | {"held_out_share": estimate(0.2, 0.3)})) == []
