"""Tests of the learner: optimiser steps, interpolated weights, and saved files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from bonbon.engines.embedded.policy import load_model
from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.errors import BonbonError
from bonbon.settings import TrainSettings
from tests.support.data.sampled_groups import EOS, VOCABULARY, make_base
from tests.support.data.written_groups import group_row, groups_of
from tests.support.models.learners import learner_of, nudge
from trainer.data.groups import Groups
from trainer.evaluation.divergence import Completion
from trainer.evaluation.kl import KL
from trainer.training.learning.learner import Learner

IDS = torch.tensor([[2, 5, 9, 4, 8, 8, EOS], [2, 11, 30, 12, 13, 14, 15]])
LORA = TrainSettings(lora_rank=4, lora_alpha=8)
FULL = TrainSettings(method="full")
METHODS = pytest.mark.parametrize("settings", [LORA, FULL], ids=["adapter", "full"])
RATE = 1e-2


@pytest.fixture(scope="module")
def half_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bf16, with a generation config that transformers would refuse to save again."""
    directory = make_base(tmp_path_factory.mktemp("models") / "tiny")
    model = AutoModelForCausalLM.from_pretrained(directory).to(torch.bfloat16)
    model.save_pretrained(directory)
    generation = {"_from_model_config": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": EOS}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    """Eight groups of four random candidates, each for a distinct prompt."""
    rng = np.random.default_rng(0)
    rows = [
        group_row(
            [0.0, 1.0, 2.0, 3.0],
            prompt_digest=str(number),
            prompt_token_ids=[2, *rng.integers(3, VOCABULARY, 3).tolist()],
            candidates=[rng.integers(3, VOCABULARY, length).tolist() for length in rng.integers(1, 8, 4)],
        )
        for number in range(8)
    ]
    return groups_of(tmp_path / "groups.parquet", rows)


def every(groups: Groups) -> NDArray[np.int64]:
    return np.arange(len(groups))


def update(
    learner: Learner, groups: Groups, *, rate: float = RATE, seed: int = 0, shift: float = 0.0
) -> dict[str, float]:
    """Takes a step on all groups; `shift` is added to the reference log-probability of the first group's best."""
    reference = learner.of_base(groups, every(groups), "")
    reference[groups.n[0] - 1] += shift
    chosen = [groups.candidates_of(row) for row in range(len(groups))]
    return learner.update(groups, chosen, reference, rate=rate, seed=seed)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(IDS).logits.float()
    return found


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def moment(learner: Learner) -> float:
    """Returns the norm of AdamW's first moment."""
    states = learner.optimiser.optimizer.state.values()
    return math.sqrt(sum(float(state["exp_avg"].double().square().sum()) for state in states))


@METHODS
def test_a_step_lowers_the_loss(base: Path, groups: Groups, settings: TrainSettings) -> None:
    learner = learner_of(base, settings)
    found = [update(learner, groups, rate=RATE if settings is LORA else 1e-3) for _ in range(12)]
    assert found[-1]["loss"] < 0.8 * found[0]["loss"]
    assert found[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert found[-1]["margin"] > 0.1
    assert found[0]["gradient_norm"] > 0
    assert found[0]["tokens_per_second"] > 0


@METHODS
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft mends it
def test_a_policy_that_has_learnt_nothing_is_its_reference_in_training_mode(
    groups: Groups, tmp_path: Path, settings: TrainSettings
) -> None:
    """The base's own dropout would make them differ."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=EOS,
        initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    learner = learner_of(tmp_path / "gpt2", settings)
    assert update(learner, groups)["margin"] == pytest.approx(0, abs=1e-5)
    policy, reference = (of(groups, every(groups), "") for of in (learner.of_policy, learner.of_base))
    assert float((policy - reference).abs().max()) > 0.01, "now it has learnt something"


@METHODS
def test_the_reference_is_the_base_wherever_the_policy_is(base: Path, groups: Groups, settings: TrainSettings) -> None:
    learner = learner_of(base, settings)
    before = learner.of_base(groups, every(groups), "")
    nudge(learner)
    weights = learner.weights()
    assert torch.equal(learner.of_base(groups, every(groups), ""), before)
    assert_same(learner.weights(), weights)
    assert not torch.allclose(learner.of_policy(groups, every(groups), ""), before, atol=0.01)


def test_a_version_is_no_reference(base: Path, groups: Groups, tmp_path: Path) -> None:
    """Training from a version measures the distance from the base, with an adapter and with whole weights."""
    first = learner_of(base, LORA)
    expected = first.of_base(groups, every(groups), "")
    nudge(first)
    first.save(first.weights(), tmp_path / "adapter", base_name="tiny")
    version = VersionFiles("tiny-bonbon-0001", VersionKind.ADAPTER, tmp_path / "adapter")
    for settings in (LORA, FULL):
        learner = learner_of(base, settings, start=version)
        torch.testing.assert_close(learner.of_base(groups, every(groups), ""), expected, rtol=0, atol=1e-4)
        policy = learner.of_policy(groups, every(groups), "")
        torch.testing.assert_close(policy, first.of_policy(groups, every(groups), ""), rtol=0, atol=1e-3)
        assert float((policy - expected).abs().max()) > 0.01


def test_only_a_gradient_far_above_the_latest_ones_is_shortened(base: Path, groups: Groups) -> None:
    """It is clipped to four times their median, because AdamW's first moment takes in a tenth of each gradient."""
    learner = learner_of(base, LORA)
    norms = [update(learner, groups, rate=1e-12)["gradient_norm"] for _ in range(12)]
    usual = norms[0]
    assert norms == pytest.approx([usual] * 12, rel=1e-3)
    assert moment(learner) == pytest.approx((1 - 0.9**12) * usual, rel=1e-3), "none of them was shortened"
    before = moment(learner)
    wild = update(learner, groups, rate=1e-12, shift=-1e4)["gradient_norm"]
    assert wild > 100 * usual
    assert moment(learner) < 0.9 * before + 0.1 * 4.001 * usual
    assert update(learner, groups, rate=1e-12)["gradient_norm"] == pytest.approx(usual, rel=1e-3)


def test_there_is_no_limit_before_it_is_known_what_is_usual(base: Path, groups: Groups) -> None:
    learner = learner_of(base, LORA)
    update(learner, groups, rate=1e-12)
    before = moment(learner)
    wild = update(learner, groups, rate=1e-12, shift=-1e4)["gradient_norm"]
    assert moment(learner) == pytest.approx(0.1 * wild, abs=before)


@METHODS
def test_what_is_not_finite_changes_nothing_and_is_forgotten(
    base: Path, groups: Groups, settings: TrainSettings
) -> None:
    """A learning rate that is too high must not affect later attempts with lower ones."""
    learner, fresh = learner_of(base, settings), learner_of(base, settings)
    start = learner.weights()
    with pytest.raises(BonbonError, match=r"the loss is (nan|inf) at a learning rate of 0\.01"):
        update(learner, groups, shift=math.inf)
    assert_same(learner.weights(), start)
    learner.restart(start)
    for seed in range(3):
        assert update(learner, groups, seed=seed)["loss"] == update(fresh, groups, seed=seed)["loss"]
    assert_same(learner.weights(), fresh.weights())


def test_restarting_forgets_the_optimisers_memory_and_what_was_usual(base: Path, groups: Groups) -> None:
    learner, fresh = learner_of(base, LORA), learner_of(base, LORA)
    start = learner.weights()
    for seed in range(12):
        update(learner, groups, seed=seed, shift=-3.0)
    learner.restart(start)
    assert not learner.gradient_norms
    assert_same(learner.weights(), start)
    for seed in range(3):
        update(learner, groups, seed=seed)
        update(fresh, groups, seed=seed)
    assert_same(learner.weights(), fresh.weights())


def test_forward_passes_of_any_size_make_one_step(base: Path, groups: Groups) -> None:
    found = []
    for size in (2, 8):
        learner = learner_of(base, LORA.model_copy(update={"micro_batch_size": size}))
        metrics = [update(learner, groups, seed=seed) for seed in range(3)]
        found.append((learner.weights(), metrics))
    for name, weight in found[0][0].items():
        torch.testing.assert_close(weight, found[1][0][name], rtol=1e-3, atol=1e-5)
    for first, second in zip(found[0][1], found[1][1], strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
        assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-3)


@METHODS
def test_the_way_from_the_base_is_straight(base: Path, groups: Groups, settings: TrainSettings) -> None:
    learner = learner_of(base, settings)
    nudge(learner)
    weights = learner.weights()
    ends = [learner.interpolated(weights, share) for share in (0.0, 1.0)]
    assert_same(ends[1], weights)
    learner.load(ends[0])
    assert torch.equal(learner.of_policy(groups, every(groups), ""), learner.of_base(groups, every(groups), ""))
    from_base = []
    for share in (0.25, 0.5, 0.75, 1.0):
        learner.load(learner.interpolated(weights, share))
        policy, reference = (of(groups, every(groups), "") for of in (learner.of_policy, learner.of_base))
        from_base.append(float((policy - reference).square().mean()))
    assert from_base == sorted(from_base)
    assert 0 < from_base[0] < 0.2 * from_base[-1]


def test_an_adapter_is_saved_alone(base: Path, tmp_path: Path) -> None:
    learner = learner_of(base, LORA)
    nudge(learner)
    learner.save(learner.weights(), tmp_path / "adapter", base_name="tiny")
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    config = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "tiny"
    assert str(base.parent) not in config
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded), logits(learner.policy.eval()))


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_model_is_saved_with_its_tokenizer(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "tiny", tied=tied)
    learner = learner_of(base, FULL)
    nudge(learner)
    learner.save(learner.weights(), tmp_path / "full", base_name="tiny")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "full").eval()
    assert torch.equal(logits(again), logits(learner.policy.eval()))
    assert AutoTokenizer.from_pretrained(tmp_path / "full")("w5 w6")["input_ids"] == [5, 6]
    assert [file.name for file in (tmp_path / "full").iterdir() if file.suffix in {".bin", ".pt", ".pkl"}] == []
    assert str(tmp_path) not in (tmp_path / "full" / "config.json").read_text()


@METHODS
def test_learning_goes_on_after_a_save(base: Path, groups: Groups, tmp_path: Path, settings: TrainSettings) -> None:
    """Learning continues as without the save, and the saved files do not change."""
    learner, other = learner_of(base, settings), learner_of(base, settings)
    for one in (learner, other):
        update(one, groups, seed=0)
    learner.save(learner.weights(), tmp_path / "saved", base_name="tiny")
    saved = load_file(next((tmp_path / "saved").glob("*.safetensors")))
    for one in (learner, other):
        update(one, groups, seed=1)
    assert_same(learner.weights(), other.weights())
    assert_same(load_file(next((tmp_path / "saved").glob("*.safetensors"))), saved)


def test_a_save_that_was_cut_off_is_made_again(base: Path, tmp_path: Path) -> None:
    """The complete policy of an interrupted training may already exist in its place."""
    learner = learner_of(base, LORA)
    learner.save(learner.weights(), tmp_path / "policy", base_name="tiny")
    nudge(learner)
    learner.save(learner.weights(), tmp_path / "policy", base_name="tiny")
    saved = load_file(tmp_path / "policy" / "adapter_model.safetensors")
    assert any(float(weight.abs().max()) > 0 for name, weight in saved.items() if "lora_B" in name)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_weights_that_are_not_finite_are_never_saved(base: Path, tmp_path: Path) -> None:
    learner = learner_of(base, LORA)
    weights = learner.weights()
    name = next(iter(weights))
    weights[name].view(-1)[0] = math.nan
    with pytest.raises(BonbonError, match=f"the trained weight {name} is not finite; lower train.learning_rate"):
        learner.save(weights, tmp_path / "policy", base_name="tiny")
    assert not (tmp_path / "policy").exists()


def test_on_a_half_precision_base_the_weights_that_are_measured_are_those_that_are_served(
    half_base: Path, groups: Groups, tmp_path: Path
) -> None:
    """Rounding to bf16 removes most of a training step; what remains must be the same everywhere."""
    learner = learner_of(half_base, FULL)
    for seed in range(3):
        update(learner, groups, rate=1e-4, seed=seed)
    trained = learner.weights()
    measured = learner.interpolated(trained, 1.0)
    assert any(not torch.equal(measured[name].float(), trained[name]) for name in trained), "rounded"
    learner.load(measured)
    loaded = {name: weight.clone() for name, weight in learner.weights().items()}
    learner.save(measured, tmp_path / "full", base_name="tiny")
    served = load_model(tmp_path / "full", torch.device("cpu"), None)
    assert {weight.dtype for weight in served.parameters()} == {torch.bfloat16}
    for name, weight in served.state_dict().items():
        assert torch.equal(weight.float(), loaded[name]), name
    again = VersionFiles("tiny-bonbon-0001", VersionKind.FULL, tmp_path / "full")
    assert_same(learner_of(half_base, FULL, start=again).weights(), loaded)
    assert (tmp_path / "full" / "generation_config.json").read_text() == (
        half_base / "generation_config.json"
    ).read_text()


def completions(count: int = 6, length: int = 160) -> list[Completion]:
    rng = np.random.default_rng(0)
    return [
        Completion((2, 5), tuple(rng.integers(3, VOCABULARY, length).tolist()), temperature)
        for temperature in (1.0, 0.7)
        for _ in range(count)
    ]


@pytest.mark.parametrize("size", [0.0, 1e-5])
def test_a_policy_that_is_all_but_the_base_diverges_by_nothing(half_base: Path, tmp_path: Path, size: float) -> None:
    """In 16 bits, two computations of one policy seem .002 nats per token apart, .2 to .3 for an answer of this
    length."""
    learner = learner_of(half_base, LORA)
    torch.manual_seed(0)
    weights = {
        name: size * torch.randn_like(weight) if "lora_B" in name else weight
        for name, weight in learner.weights().items()
    }
    learner.save(weights, tmp_path / "adapter", base_name="tiny")
    version = VersionFiles("tiny-bonbon-0001", VersionKind.ADAPTER, tmp_path / "adapter")
    found = KL(VersionFiles("tiny", VersionKind.BASE, half_base), version)(completions(), lambda done: None)
    assert max(abs(one.rao_blackwell) for one in found) < 0.01
    assert max(abs(one.k1) for one in found) < 0.01
