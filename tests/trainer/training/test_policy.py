"""Tests of the policy that training starts from: its files, its trained weights, and refused starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.settings import TrainSettings
from tests.support.data.sampled_groups import make_base
from tests.support.models.learners import learner_of, nudge
from trainer.training.learning.policy import load_policy
from trainer.training.start import check_start

IDS = torch.tensor([[2, 5, 9, 4, 8, 8, 1], [2, 11, 30, 12, 13, 14, 15]])
LORA = TrainSettings(lora_rank=4, lora_alpha=8)
FULL = TrainSettings(method="full")


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter, which differs from the base."""
    directory = tmp_path_factory.mktemp("versions") / "adapter"
    learner = learner_of(base, LORA)
    nudge(learner)
    learner.save(learner.weights(), directory, base_name="tiny")
    return directory


def adapter_version(directory: Path) -> VersionFiles:
    return VersionFiles("tiny-bonbon-0001", VersionKind.ADAPTER, directory)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


def trained(policy: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def test_a_fresh_adapter_is_the_base_exactly(base: Path, model: Any) -> None:
    policy = load_policy(base, None, LORA)
    assert torch.equal(logits(policy), logits(model))
    assert trained(policy)
    assert all("lora_" in name for name in trained(policy))


def test_a_seed_gives_the_same_fresh_adapter(base: Path) -> None:
    settings = [LORA.model_copy(update={"seed": seed}) for seed in (1, 1, 2)]
    first, same, other = (trained(load_policy(base, None, one)) for one in settings)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft mends it
@pytest.mark.parametrize("settings", [LORA, FULL], ids=["adapter", "full"])
def test_the_bases_own_dropout_is_off_in_training(tmp_path: Path, settings: TrainSettings) -> None:
    """GPT-2 has a dropout of a tenth, but an untrained policy must equal its reference."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=1, pad_token_id=0
    )
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    policy = load_policy(tmp_path / "gpt2", None, settings)
    expected = logits(policy.eval())
    policy.train()
    assert torch.equal(logits(policy), expected)


def test_the_adapters_own_dropout_stays(base: Path, adapter: Path) -> None:
    policy = load_policy(base, None, LORA.model_copy(update={"lora_dropout": 0.5}))
    rates = {module.p for name, module in policy.named_modules() if "lora_dropout" in name and hasattr(module, "p")}
    assert rates == {0.5}


def test_an_adapter_version_is_continued_where_it_ends(base: Path, model: Any, adapter: Path) -> None:
    expected = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))
    continued = load_policy(base, adapter_version(adapter), LORA)
    assert torch.equal(logits(continued), expected)
    assert all("lora_" in name for name in trained(continued))
    assert trained(continued)
    assert not torch.allclose(expected, logits(model))

    merged = load_policy(base, adapter_version(adapter), FULL)
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert len(trained(merged)) == len(list(merged.parameters()))


def test_a_full_version_is_continued_by_full_training_alone(base: Path, tmp_path: Path) -> None:
    learner = learner_of(base, FULL)
    nudge(learner)
    learner.save(learner.weights(), tmp_path / "full", base_name="tiny")
    version = VersionFiles("tiny-bonbon-0001", VersionKind.FULL, tmp_path / "full")
    assert torch.equal(logits(load_policy(base, version, FULL)), logits(learner.policy))
    with pytest.raises(UserError, match=r"train\.method = 'lora' cannot continue from tiny-bonbon-0001: it has"):
        load_policy(base, version, LORA)


@pytest.mark.parametrize("module", ["model.embed_tokens", "lm_head"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_an_adapter_on_tied_embeddings_is_not_merged(module: str, tmp_path: Path) -> None:
    """A merged adapter would change input and output, while an adapter on either changes only one."""
    tied, untied = (make_base(tmp_path / name, tied=name == "tied") for name in ("tied", "untied"))
    for base in (tied, untied):
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=["q_proj", module.split(".")[-1]], init_lora_weights=False)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        directory = tmp_path / f"on {base.name}"
        adapted.save_pretrained(directory, save_embedding_layers=False)
        start = adapter_version(directory)
        torch.testing.assert_close(logits(load_policy(base, start, LORA)), logits(adapted), rtol=1e-4, atol=1e-3)
        if base is untied:
            torch.testing.assert_close(logits(load_policy(base, start, FULL)), logits(adapted), rtol=1e-4, atol=1e-3)
            continue
        for check in (check_start, load_policy):
            with pytest.raises(
                UserError, match=f"train.method = 'full' cannot continue from .*on {module}, "
            ) as refused:
                check(base, start, FULL)
            assert refused.value.param == "train.method"


def test_named_modules_only(base: Path) -> None:
    policy = load_policy(base, None, LORA.model_copy(update={"lora_targets": "q_proj, v_proj"}))
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained(policy)} == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match="no_such_proj"):
        load_policy(base, None, LORA.model_copy(update={"lora_targets": "no_such_proj"}))


def test_frozen_weights_can_be_half_and_trained_ones_never(base: Path, adapter: Path) -> None:
    for start in (None, adapter_version(adapter)):
        policy = load_policy(base, start, LORA, dtype=torch.bfloat16)
        dtypes = {parameter.requires_grad: parameter.dtype for parameter in policy.parameters()}
        assert dtypes == {True: torch.float32, False: torch.bfloat16}
    full = load_policy(base, None, FULL, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}


def test_pickled_weights_are_never_read(base: Path, model: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((base / "config.json").read_text())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_policy(tmp_path, None, LORA)
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        load_policy(base, adapter_version(tmp_path), LORA)


def copied(directory: Path, target: Path) -> Path:
    target.mkdir()
    for file in directory.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_an_adapter_of_another_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = copied(adapter, tmp_path / "adapter")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    with pytest.raises(UserError, match="tiny-bonbon-0001"):
        load_policy(base, adapter_version(other), LORA)


def test_a_cut_file_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    file = copied(adapter, tmp_path / "adapter") / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="tiny-bonbon-0001"):
        load_policy(base, adapter_version(tmp_path / "adapter"), LORA)
