"""Merges a LoRA adapter into its base model: the result has whole weights and the distribution of the adapter."""

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

    The weights have the base's precision, and the base's configuration and tokenizer are copied beside them. The whole
    model must fit into main memory in that precision.

    Raises:
        UserError: The adapter does not fit the base, or cannot be merged into it.
    """
    sound = read_adapter(adapter)
    if shared := adapted_and_shared(base, adapter):
        raise UserError(
            f"the adapter in {adapter} cannot be merged: it adapts {shared}, whose weights the model's input and "
            "output share, so merging it would change both; export the adapter itself (without --merged)"
        )
    logging.disable_progress_bar()  # transformers would show its own bar inside ours.
    with bar("loading the base model", 1) as done:
        model: Any = load_model(base, torch.device("cpu"), stored_dtype(base))
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
        done(1)
