"""Tests of whole runs that learn from their own policy's draws, with the real engine and a reward."""

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sqlalchemy import func, select
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM

from bonbon.engines.adapters.adapter_files import Adapter
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.engines.embedded.embedded_options import EmbeddedOptions
from bonbon.engines.embedded.policy import Policy
from bonbon.engines.engine import Sampling, VersionKind
from bonbon.errors import RewardError, UserError
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.reading.snapshot import Snapshot, Split
from bonbon.prompt import Prompt
from bonbon.rewards.python_reward import PythonReward
from bonbon.settings import Settings, TrainSettings
from bonbon.store.database import open_database
from bonbon.store.tables import groups as logged
from bonbon.theory import best_of_n_kl, tilt_for_kl
from tests.support.data.sampled_groups import VERSION, make_group, make_snapshot, score, snapshot_of
from tests.support.models.learners import learner_of, nudge
from tests.trainer.training.test_train import settings, train, version, weights
from trainer.data.groups import Groups, Rows
from trainer.drawing import Drawing
from trainer.training import run
from trainer.training.learning.learner import Weights
from trainer.training.metrics import read_metrics
from trainer.training.stages import refinement
from trainer.training.stages.draws import DrawBox
from trainer.training.stages.validation import Drawer, DrawnGain
from trainer.training.train import TrainingResult


@pytest.fixture(scope="module")
def snapshot(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A snapshot of 72 groups."""
    return make_snapshot(tmp_path_factory.mktemp("snapshots") / "first", base, groups=72, ns=(8,))


def refining(base: Path, **changes: Any) -> Settings:
    """Returns settings for two steps on logged groups, then about 9,000 tokens."""
    defaults = {
        "epochs": 0.5,
        "learning_rate": 3e-3,
        "lora_rank": 16,
        "refine": "on",
        "refine_tokens": 9_000,
        "validation_draws": 64,
    }
    return settings(base, **defaults | changes)


async def train_with_draws(
    config: Settings,
    snapshot: Snapshot,
    run_dir: Path,
    base: Path,
    *,
    reward: Any = score,
    **options: Any,
) -> TrainingResult:
    """Trains in a thread, as a round does, while its orders are fulfilled."""
    run_dir.mkdir(exist_ok=True)
    async with open_database(f"sqlite+aiosqlite:///{snapshot.path}.db") as database:
        log = PairLog(database)
        await log.start()
        drawing = Drawing(
            lambda: EmbeddedEngine("tiny", base, EmbeddedOptions(threads=1)),
            PythonReward(reward, version="1"),
            snapshot,
            DrawBox(run_dir),
            name="round-x",
            pair_log=log,
            concurrency=8,
        )
        try:
            async with drawing.in_background():
                return await asyncio.to_thread(train, config, snapshot, run_dir, base, draws=True, **options)
        finally:
            await log.stop()


def lines_of(run_dir: Path, name: str) -> list[dict[str, float]]:
    return [line for line in read_metrics(run_dir) if name in line]


def measure_kls(monkeypatch: pytest.MonkeyPatch, kl: Callable[[int], float]) -> None:
    """Replaces the measured KL by that of the number of the measurement, counted from 1 in each validation."""
    measure = Drawer.gain

    def gain(drawer: Drawer, number: int, weights: Weights, rows: Rows, count: int, tilt: float) -> DrawnGain:
        found = measure(drawer, number, weights, rows, count, tilt)
        return replace(found, kl=kl((number - refinement.FIRST_ORDER) % refinement.ORDERS_PER_STEP))

    monkeypatch.setattr(Drawer, "gain", gain)


def only_the_first_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allows budgets that the first validation uses up."""
    monkeypatch.setattr(run, "too_few_tokens", lambda *_: None)


async def test_a_policy_learns_from_its_own_draws_more_than_logged_groups_have_taught_it(
    base: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    # The best policy has 512 draws, with which the standard error of a validation gain is about 0.05.
    config = refining(base, refine_tokens=20_000, validation_draws=128)
    result = await train_with_draws(config, snapshot, tmp_path / "run", base)
    assert result.kind is VersionKind.ADAPTER
    steps = lines_of(result.run_dir, "drawn_gain")
    looks = lines_of(result.run_dir, "validation_drawn_gain")
    assert {line["stage"] for line in steps + looks} == {1}
    offline = max(line["step"] for line in read_metrics(result.run_dir) if line.get("stage") == 0)
    assert [line["step"] for line in steps] == list(range(offline + 1, offline + 1 + len(steps)))
    tokens = [line["drawn_tokens"] for line in steps]
    assert tokens == sorted(tokens)
    assert tokens[-2] < config.train.refine_tokens, "it has not drawn on once they were spent"
    assert all(line["loss"] == pytest.approx(line["contrast"]) for line in steps), "without the supervised term"
    rates = [line["learning_rate"] for line in steps[5:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.15 * rates[0], "the rate falls to 0 as the tokens are spent"
    (kept,) = lines_of(result.run_dir, "kept_gain")[1:]
    gains = {line["step"]: line["validation_drawn_gain"] for line in looks}
    assert kept["kept_gain"] == gains[kept["kept_step"]]
    assert kept["kept_gain"] > looks[0]["validation_drawn_gain"] + 0.1, "fresh draws have taught it something"
    aim = tilt_for_kl(1.1 * best_of_n_kl(4))
    values = {line["step"]: aim * (line["validation_win_rate"] - 0.5) - line["validation_kl"] for line in looks}
    draws = {line["step"]: line["validation_draws"] for line in looks}
    once = min(draws.values())
    assert draws[offline] == draws[kept["kept_step"]] == 4 * once, "the best was drawn from again, three times as often"
    best = -math.inf
    for step, value in values.items():
        assert draws[step] > once or value <= best, "only a policy that seems to be worse was not"
        best = max(best, value) if draws[step] > once else best
    assert not (result.run_dir / "draws").exists()


async def test_a_policy_that_diverges_too_far_is_brought_back_and_learns_on(
    base: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss asks for the divergence of best-of-n, whatever the limit is."""
    monkeypatch.setattr(refinement, "VALIDATE_EVERY", 5)
    limit = 0.1
    config = refining(base, loss="vbon", kl=limit, refine_learning_rate=3e-3, refine_tokens=20_000)
    result = await train_with_draws(config, snapshot, tmp_path / "run", base)
    looks = lines_of(result.run_dir, "validation_drawn_gain")
    brought_back = [line for line in looks if line["share_kept"] < 1]
    assert brought_back
    assert brought_back[0]["step"] < looks[-1]["step"]
    (kept,) = lines_of(result.run_dir, "kept_gain")[1:]
    (look,) = (line for line in looks if line["step"] == kept["kept_step"])
    assert kept["kept_gain"] == look["validation_drawn_gain"] > 0
    assert look["validation_kl"] <= limit * 1.1


async def test_a_policy_that_only_seemed_to_diverge_too_far_stays_where_it_is(
    base: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = best_of_n_kl(4)
    measure_kls(monkeypatch, lambda look: limit * (1.4 if look == 1 else 0.9))
    config = refining(base, refine_tokens=2_000, validation_draws=16)
    result = await train_with_draws(config, snapshot, tmp_path / "run", base)
    looks = lines_of(result.run_dir, "validation_drawn_gain")
    assert len(looks) > 1
    assert {line["share_kept"] for line in looks} == {1}
    assert all(line["validation_kl"] == pytest.approx(limit * (1.4 + 3 * 0.9) / 4) for line in looks)


def test_policies_are_compared_by_the_c_of_the_best_one_at_the_limit() -> None:
    assert refinement.tilt_at_limit(0.1, 4) == tilt_for_kl(1.1 * 0.1)
    assert refinement.tilt_at_limit(5.0, 4) == tilt_for_kl(1.1 * best_of_n_kl(4)), (
        "no reason to go farther than best-of-n"
    )


async def test_a_budget_too_small_for_one_step_leaves_the_stage_out(
    base: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    config = refining(base, refine_tokens=500, validation_draws=16, refine="auto")
    with capture_logs() as said:
        result = await train_with_draws(config, snapshot, tmp_path / "auto", base)
    (reason,) = [entry["reason"] for entry in said if "does not learn" in entry["event"]]
    assert re.match(r"train\.refine_tokens = 500 is less than \d{4}, .* raise it, or lower train\.validation", reason)
    assert lines_of(result.run_dir, "interpolation_share")
    assert not lines_of(result.run_dir, "validation_drawn_gain")


async def test_a_policy_learns_towards_the_best_one_at_the_limit(
    base: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    """The target for best against worst is c times the difference of their win chances. A lower limit gives a lower c,
    although that difference is larger near the base.
    """
    targets = {}
    for limit in (0.1, 5.0):
        config = refining(base, kl=limit, refine_tokens=2_000, validation_draws=16)
        result = await train_with_draws(config, snapshot, tmp_path / f"run-{limit}", base)
        targets[limit] = fmean(line["target"] for line in lines_of(result.run_dir, "target") if line["stage"] == 1)
    assert targets[0.1] < 0.7 * targets[5.0]
    # At the c of best-of-4 the target is at most c; without the cap it would be several times that.
    assert targets[5.0] < refinement.tilt_at_limit(5.0, 4)


async def test_a_policy_that_is_moved_three_times_can_be_kept(
    base: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = best_of_n_kl(4)
    measure_kls(monkeypatch, lambda look: limit * (1.4 if look <= 6 else 1.0))
    only_the_first_validation(monkeypatch)
    config = refining(base, refine_tokens=1, validation_draws=16)
    result = await train_with_draws(config, snapshot, tmp_path / "run", base)
    (look,) = lines_of(result.run_dir, "validation_drawn_gain")
    assert look["share_kept"] == pytest.approx((1.05 / 1.4) ** (1 / 3) * (1 / 1.4) ** (2 / 3))
    (kept,) = lines_of(result.run_dir, "kept_gain")[1:]
    assert kept["kept_gain"] == look["validation_drawn_gain"]
    assert look["validation_kl"] == pytest.approx(limit)


async def test_a_first_policy_that_never_comes_back_to_the_limit_is_kept_where_it_was_moved(
    base: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = best_of_n_kl(4)
    measure_kls(monkeypatch, lambda look: limit * 1.4)
    only_the_first_validation(monkeypatch)
    config = refining(base, refine_tokens=1, validation_draws=16)
    result = await train_with_draws(config, snapshot, tmp_path / "run", base)
    (look,) = lines_of(result.run_dir, "validation_drawn_gain")
    share = (1.05 / 1.4) ** (1 / 3) * (1 / 1.4) ** (2 / 3)
    assert look["share_kept"] == pytest.approx(share)
    (kept,) = lines_of(result.run_dir, "kept_gain")[1:]
    assert kept["kept_gain"] == look["validation_drawn_gain"]
    without = await train_with_draws(refining(base, refine="off"), snapshot, tmp_path / "without", base)
    for name, weight in weights(result.run_dir).items():
        moved = share if "lora_B" in name else 1
        torch.testing.assert_close(weight, moved * weights(without.run_dir)[name], msg=name)


async def test_an_engine_that_serves_another_adapter_than_the_trained_one_is_found_out(
    base: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Policy._fill

    def another(self: Policy, key: str, adapter: Adapter) -> None:
        weights = {
            name: 30 * weight if "lm_head.lora_B" in name else weight for name, weight in adapter.weights.items()
        }
        fill(self, key, replace(adapter, weights=weights))

    config = refining(base, refine="off", epochs=2, lora_output_layer=True)
    await train_with_draws(config, snapshot, tmp_path / "same", base)
    monkeypatch.setattr(Policy, "_fill", another)
    with pytest.raises(
        UserError, match=r"the policy in training did not draw them, .* with train\.lora_output_layer = false"
    ):
        await train_with_draws(config, snapshot, tmp_path / "another", base)


async def test_cut_off_it_goes_on_without_drawing_twice(
    base: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward fails after the first checkpoint of the stage. Once it is back, the run ends like any other.

    The limit of the KL is so low that the policy is moved back to it meanwhile.
    """
    monkeypatch.setattr(refinement, "VALIDATE_EVERY", 1)
    config = refining(
        base,
        loss="vbon",
        refine_learning_rate=3e-3,
        refine_tokens=8_000,
        refine_replay=1,
        validation_draws=16,
        kl=0.02,
    )
    checkpoints = tmp_path / "cut" / "checkpoints" / "refinement"
    calls = {"straight": 0, "cut": 0, "resumed": 0}
    running = "straight"

    def counted(prompt: Prompt, completions: list[str]) -> Sequence[float]:
        calls[running] += 1
        if running == "cut" and checkpoints.exists() and any(checkpoints.iterdir()):
            raise ConnectionError("the reward is away")
        return score(prompt, completions)

    straight = await train_with_draws(config, snapshot, tmp_path / "straight", base, reward=counted)
    assert any(line["share_kept"] < 1 for line in lines_of(straight.run_dir, "share_kept"))
    running = "cut"
    with pytest.raises(RewardError, match="the reward is away"):
        await train_with_draws(config, snapshot, tmp_path / "cut", base, reward=counted)
    assert list((tmp_path / "cut" / "draws").iterdir())
    running = "resumed"
    resumed = await train_with_draws(config, snapshot, tmp_path / "cut", base, reward=counted)
    assert calls["resumed"] < calls["straight"] - calls["cut"] / 2, "what was drawn is there"
    for name, weight in weights(straight.run_dir).items():
        torch.testing.assert_close(weights(resumed.run_dir)[name], weight)
    for name in ("loss", "learning_rate", "drawn_gain", "drawn_tokens", "validation_drawn_gain"):
        once, twice = ({x["step"]: x[name] for x in lines_of(run.run_dir, name)} for run in (straight, resumed))
        assert twice == pytest.approx(once, abs=1e-5), name


async def test_without_refinement_the_policy_is_brought_to_where_its_draws_are_best(
    base: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    """The kept version is at the chosen share of the way from the base to the policy trained on logged groups."""
    config = refining(base, refine="off", epochs=2)
    whole = train(config, snapshot, tmp_path / "whole", base)
    result = await train_with_draws(config, snapshot, tmp_path / "run", base)
    share = result.metrics["interpolation_share"]
    assert 0 < share <= 1
    assert lines_of(result.run_dir, "drawn_gain") == []
    end, kept = (load_file(run.output / "adapter_model.safetensors") for run in (whole, result))
    for name, weight in end.items():
        torch.testing.assert_close(kept[name], weight * share if "lora_B" in name else weight)


async def test_the_base_draws_for_prompts_that_only_a_version_has_answered(base: Path, tmp_path: Path) -> None:
    """Candidates of a version need opponents from the base; without them such prompts are useless."""
    learner = learner_of(base, TrainSettings(lora_rank=4, lora_alpha=8))
    nudge(learner, 0.08)
    learner.save(learner.weights(), tmp_path / "adapter", base_name="tiny")
    snapshot = await snapshot_of(
        groups_of_version(base, learner), tmp_path / "snapshot", base, adapter=tmp_path / "adapter"
    )
    groups = Groups.read(snapshot.groups_file, base="tiny")
    alone = np.flatnonzero(~groups.comparable & (groups.split != Split.TEST))
    assert len(alone) > 30
    champion = version(snapshot.version, VersionKind.ADAPTER, tmp_path / "adapter")
    config = refining(base, base_prompts=30, refine="off", batch_size=8)
    result = await train_with_draws(config, snapshot, tmp_path / "run", base, start=champion)
    comparable = groups.comparable & (groups.split == Split.TRAIN)
    assert comparable.sum() < result.groups < comparable.sum() + 2 * 30, "each new one, and the version's beside it"
    assert result.metrics["interpolation_share"] >= 0
    async with open_database(f"sqlite+aiosqlite:///{snapshot.path}.db") as database:
        query = select(func.count()).where(logged.c.origin == "training", logged.c.version == "tiny")
        async with database.read() as connection:
            assert (await connection.execute(query)).scalar_one() == 30


def groups_of_version(base: Path, learner: Any) -> list[Any]:
    """Returns groups of the version, most of them for prompts that the base has not drawn for."""
    torch.manual_seed(0)
    own, policy = AutoModelForCausalLM.from_pretrained(base).eval(), learner.policy.eval()
    rng, found = np.random.default_rng(0), []
    for number in range(80):
        prompt, sampling = (2, *rng.integers(3, 40, 4).tolist()), Sampling(max_tokens=8)
        found.append(make_group(policy, VERSION, 2 * number, prompt, 8, sampling))
        if number % 4 == 0:
            found.append(make_group(own, "tiny", 2 * number + 1, prompt, 8, sampling))
    return found
