"""Merges a LoRA adapter into its base model: the result has whole weights and the distribution of the adapter."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.utils import logging

from bonbon.engines.adapters.adapter_files import read_adapter
from bonbon.engines.adapters.base_check import adapted_and_shared
from bonbon.engines.adapters.full_weights import save_whole_model, stored_dtype
from bonbon.engines.adapters.peft_layers import strip
from bonbon.engines.embedded.policy import load_model
from bonbon.errors import UserError
from bonbon.progress import Bar


def merge_adapter(base: Path, adapter: Path, directory: Path, bar: Bar) -> None:
    """Writes the base model with the adapter merged into its weights to a new directory.

    The weights have the base's precision, and the base's configuration and tokenizer are copied beside them. Where the
    adapter is on an input or output layer and the base ties the two, the result has weights for each, because a merged
    adapter would otherwise change both. The whole model must fit into main memory in that precision.

    Raises:
        UserError: The adapter does not fit the base, or cannot be merged into it.
    """
    sound = read_adapter(adapter)
    shared = adapted_and_shared(base, adapter)
    logging.disable_progress_bar()  # transformers would show its own bar inside ours.
    with bar("loading the base model", 1) as done:
        model: Any = load_model(base, torch.device("cpu"), stored_dtype(base))
        if shared:
            _untie(model)
        done(1)
    try:
        adapted = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    except Exception as error:
        raise sound.misfit(error) from error
    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    with bar("merging the adapter", len(layers)) as done:
        for count, layer in enumerate(layers, start=1):
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:
                raise UserError(
                    f"the adapter in {adapter} cannot be merged ({error}): export the adapter itself (without --merged)"
                ) from error
            done(count)
    merged = strip(model)
    with bar("writing the weights", 1) as done:
        save_whole_model(merged, directory, base=base, weights=merged.state_dict())
        if shared:
            _record_untied(directory / "config.json", merged.config)
        done(1)


def _untie(model: Any) -> None:
    """Gives the output layer weights of its own, equal to those of the input, with which it shared them."""
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    written.weight = torch.nn.Parameter(read.weight.detach().clone(), requires_grad=False)
    name = next(name for name, module in model.named_modules() if module is written)
    model.all_tied_weights_keys = {
        target: source for target, source in model.all_tied_weights_keys.items() if target != f"{name}.weight"
    }
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _record_untied(path: Path, config: Any) -> None:
    """Writes into a copy of the base's config.json that the output layer has weights of its own."""
    values = json.loads(path.read_text())
    text = config.get_text_config()
    nested = (section for name, section in values.items() if getattr(config, name, None) is text)
    for section in (values, *nested):
        section["tie_word_embeddings"] = False
    path.write_text(json.dumps(values, indent=2) + "\n")
