"""Tests of the modules that get an adapter, and of targets that are refused before training."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bonbon.engines.adapters.adapter_files import read_adapter
from bonbon.errors import UserError
from bonbon.settings import TrainSettings
from tests.support.models.learners import learner_of
from tests.support.zoo.policies import POLICIES
from trainer.training.learning.lora_targets import check_targets
from trainer.training.learning.policy import load_policy

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out")


def settings(targets: str = "all-linear", **changes: Any) -> TrainSettings:
    return TrainSettings(lora_rank=2, lora_targets=targets, **changes)


def adapted(policy: Any) -> set[str]:
    """Returns the last parts of the names of modules with an adapter."""
    return {name.split(".lora_")[0].rpartition(".")[2] for name, one in policy.named_parameters() if one.requires_grad}


def backward(policy: Any) -> list[str]:
    """Returns the trained parameters that receive no gradient from text."""
    ids = torch.arange(20, 60)[None]
    policy(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float().logsumexp(
        -1
    ).sum().backward()
    return [name for name, one in policy.named_parameters() if one.requires_grad and one.grad is None]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen2", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        ("GPT-2", "c_attn c_fc c_proj"),
        ("Mixtral", "k_proj o_proj q_proj v_proj"),
        ("DeepSeek-V3", "kv_a_proj_with_mqa kv_b_proj o_proj q_a_proj q_b_proj"),
        ("Llama 4", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        ("Phi-3.5-MoE", "k_proj o_proj q_proj v_proj"),
        ("Gemma 3, multimodal", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        ("Jamba", "down_proj gate_proj in_proj k_proj o_proj out_proj q_proj router up_proj v_proj x_proj"),
        ("Falcon-H1", "down_proj gate_proj in_proj k_proj o_proj q_proj up_proj v_proj"),
    ],
)
def test_all_linear_layers_that_engines_serve_and_text_goes_through(name: str, expected: str, tmp_path: Path) -> None:
    base = POLICIES[name].save(tmp_path / "base")
    learner = learner_of(base, settings())
    assert adapted(learner.policy) == set(expected.split())
    assert not backward(learner.policy)
    learner.save(learner.weights(), tmp_path / "adapter", base_name="base")
    assert read_adapter(tmp_path / "adapter").weights
    assert not json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()).get("target_parameters")


def test_named_modules_are_those_that_text_goes_through(tmp_path: Path) -> None:
    """The vision tower also has a q_proj."""
    base = POLICIES["Gemma 3, multimodal"].save(tmp_path / "base")
    policy = load_policy(base, None, settings("q_proj"))
    assert adapted(policy) == {"q_proj"}
    assert not backward(policy)
    with pytest.raises(UserError, match="it calls no fc1 that returns one tensor when it reads text"):
        load_policy(base, None, settings("fc1"))


def test_in_full_what_text_does_not_go_through_stays_as_it_is(tmp_path: Path) -> None:
    base = POLICIES["Gemma 3, multimodal"].save(tmp_path / "base")
    policy = load_policy(base, None, settings(method="full"))
    frozen = {name.split(".")[1] for name, one in policy.named_parameters() if not one.requires_grad}
    assert frozen == {"vision_tower", "multi_modal_projector"}
    assert not backward(policy)


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("DeepSeek-V3", "q_a_proj,gate_proj,up_proj", "the weights of all experts in one tensor, such as gate_up_proj"),
        ("DeepSeek-V3", "gate_proj", "gate_proj without also targeting up_proj"),
        ("Mixtral", "q_proj,gate", "gate is neither a linear layer nor an embedding but MixtralTopKRouter"),
        ("Qwen2", "q_proj,embed_tokens", "embed_tokens shares its weights between the model's input and its output"),
        ("Qwen2", "lm_head", "lm_head shares its weights"),
        ("Qwen2", "no_such_proj", "no_such_proj"),
        ("Qwen2", ",", "no module"),
    ],
)
def test_what_cannot_be_served_is_refused_without_weights(
    name: str, targets: str, message: str, tmp_path: Path
) -> None:
    base = POLICIES[name].save(tmp_path / "base")
    for check in (check_targets, lambda base, settings: load_policy(base, None, settings)):
        with pytest.raises(UserError, match=message) as refused:
            check(base, settings(targets))
        assert refused.value.param == "train.lora_targets"
        assert str(refused.value).startswith(f"train.lora_targets = {targets!r} cannot be trained on this model: ")
        assert "; set train.lora_targets to other linear layers, such as q_proj,v_proj, or " in str(refused.value)


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,gate_up_proj"])
def test_layers_on_which_the_engine_serves_no_adapter_are_refused_with_the_others(targets: str, tmp_path: Path) -> None:
    base = POLICIES["GLM-4"].save(tmp_path / "base")
    check_targets(base, settings(targets))
    with pytest.raises(UserError, match="includes gate_up_proj, on which this vLLM cannot serve") as refused:
        check_targets(base, settings(targets), {"gate_up_proj"})
    assert refused.value.param == "train.lora_targets"
    remedy = re.search("set train.lora_targets = '(.*?)'", str(refused.value))
    assert remedy is not None
    check_targets(base, settings(remedy[1]), {"gate_up_proj"})
    assert adapted(load_policy(base, None, settings(remedy[1]))) == set(remedy[1].split(","))


@pytest.mark.parametrize(("name", "tied"), [("Qwen2", True), ("Qwen3", False)])
@pytest.mark.parametrize("targets", ["all-linear", "q_proj"])
def test_the_output_layer_gets_an_adapter_that_changes_nothing_else(
    name: str, tied: bool, targets: str, tmp_path: Path
) -> None:
    base = POLICIES[name].save(tmp_path / "base")
    without = adapted(load_policy(base, None, settings(targets)))
    policy = load_policy(base, None, settings(targets, lora_output_layer=True))
    assert (policy.get_input_embeddings().weight is policy.get_output_embeddings().weight) == tied
    assert adapted(policy) == without | {"lm_head"}
    assert not backward(policy)


def test_a_router_that_returns_more_than_a_tensor_is_refused(tmp_path: Path) -> None:
    base = POLICIES["Llama 4"].save(tmp_path / "base")
    with pytest.raises(UserError, match="it calls no router that returns one tensor when it reads text"):
        load_policy(base, None, settings("q_proj,router"))


def test_embeddings_that_are_not_tied_can_be_adapted(tmp_path: Path) -> None:
    base = POLICIES["Qwen3"].save(tmp_path / "base")
    check_targets(base, settings("q_proj,embed_tokens"))
    policy = load_policy(base, None, settings("q_proj,embed_tokens"))
    assert adapted(policy) == {"q_proj", "embed_tokens"}
    assert not backward(policy)
    for one in policy.parameters():
        if one.requires_grad:
            torch.nn.init.normal_(one, std=0.1)
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        alone = policy.eval()(ids).logits
        torch.testing.assert_close(policy.merge_and_unload()(ids).logits, alone, rtol=1e-4, atol=1e-4)
