"""Checks adapters against a base model without loading its weights."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from bonbon.engines.adapters.adapter_files import WEIGHTS, Adapter
from bonbon.errors import UserError


def check_fit(adapter: Adapter, base: Path) -> None:
    """Raises UserError when the adapter does not fit the base model in directory `base`.

    Reads none of the base's weights.
    """
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
            model = PeftModel(AutoModelForCausalLM.from_config(config), adapter.config, autocast_adapter_dtype=False)
        adapter.check(get_peft_model_state_dict(model, save_embedding_layers=False))
    except Exception as error:
        raise adapter.misfit(error) from error


def adapted_and_shared(base: Path, adapter: Path) -> str:
    """Returns the names of the adapted input or output embeddings that share their weights, or an empty string.

    Such an adapter cannot be merged into weights that stay shared: it changes only the input or only the output, while
    they would change both.
    """
    model = without_weights(AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False))
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    if written is None or read.weight is not written.weight:
        return ""
    shared = [name for name, module in model.named_modules() if module is read or module is written]
    try:
        with safe_open(adapter / WEIGHTS, framework="pt") as file:
            weights = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{adapter / WEIGHTS} cannot be read ({error}); restore the version's files") from error
    return ", ".join(name for name in shared if any(f".{name}.lora_" in weight for weight in weights))


def without_weights(config: Any) -> Any:
    """Returns the language model of this configuration, with weights that take no memory and have no values."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
