"""Tells whether vLLM can serve LoRA adapters on a model, and on which of its layers it cannot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.models import ModelRegistry, supports_lora
from vllm.platforms import current_platform

from bonbon.engines.adapters.adapter_files import OUTPUT_LAYER

MAX_VOCABULARY = 258048
"""The largest vocabulary with which vLLM 0.32 serves adapters on the output layer."""

log = structlog.get_logger(__name__)


def takes_adapters(directory: Path, arguments: Mapping[str, Any]) -> bool:
    """Returns whether vLLM supports LoRA adapters on a model; also true where vLLM does not tell.

    Args:
        arguments: The arguments of `AsyncEngineArgs` besides the model.
    """
    try:
        config, architecture = _resolved(directory, arguments)
    except Exception as error:  # noqa: BLE001 - this only affects the message about another failure
        log.debug("cannot tell whether vLLM supports adapters on this model", error=f"{type(error).__name__}: {error}")
        return True
    if config.is_moe and current_platform.is_cpu():
        return False  # With adapters, vLLM 0.32 computes experts with Triton, which does not run on CPUs.
    return bool(supports_lora(architecture))


def unadaptable_layers(directory: Path, arguments: Mapping[str, Any]) -> frozenset[str]:
    """Returns the names of layers on which vLLM loads no adapter. Empty where vLLM does not know the architecture.

    Some layers are known to vLLM only by their parts, while in the model's own files they may be whole: GLM-4 has a
    `gate_up_proj`, on which peft puts an adapter, and of which vLLM expects the parts `gate_proj` and `up_proj`. The
    output layer is adapted only in models that name it.
    """
    try:
        config, architecture = _resolved(directory, arguments)
    except Exception as error:  # noqa: BLE001 - what vLLM cannot serve at all is refused when the engine starts
        log.debug("cannot tell on which layers vLLM supports adapters", error=f"{type(error).__name__}: {error}")
        return frozenset()
    packed: Mapping[str, list[str]] = getattr(architecture, "packed_modules_mapping", None) or {}
    embeddings: Mapping[str, str] = getattr(architecture, "embedding_modules", None) or {}
    split = {name for name, parts in packed.items() if name not in parts}
    served = OUTPUT_LAYER in embeddings and int(config.get_vocab_size()) <= MAX_VOCABULARY
    return frozenset(split if served else {*split, OUTPUT_LAYER})


def _resolved(directory: Path, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    config = AsyncEngineArgs(model=str(directory), **arguments).create_model_config()
    architecture, _ = ModelRegistry.resolve_model_cls(config.architectures, config)
    return config, architecture
