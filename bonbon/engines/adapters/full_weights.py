"""Writes a model with all of its weights in Hugging Face format."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion

from bonbon.files.manifest import MANIFEST

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COPIED_SUFFIXES = {".json", ".jinja", ".txt", ".model"}


def save_whole_model(model: "PreTrainedModel", directory: Path, *, base: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes `weights` as safetensors into a new directory, with the configuration and tokenizer of the base.

    Args:
        model: A model with the architecture of the base; it is not changed.
        base: The directory of the base model.
        weights: Every weight of the model's state dictionary.
    """
    directory.mkdir(parents=True)
    # The base's files are copied, because transformers refuses to save some configurations that it has loaded.
    for file in sorted(base.iterdir()):
        about_weights = file.name == MANIFEST or file.name.endswith(".index.json")
        if file.suffix in COPIED_SUFFIXES and not about_weights:
            shutil.copyfile(file, directory / file.name)
    untied = {name: weight for name, weight in weights.items() if name not in model.all_tied_weights_keys}
    # Restores the names of the base's files, because transformers merges some weights, such as those of experts.
    original = revert_weight_conversion(model, untied)
    save_torch_state_dict({name: _compact(weight) for name, weight in original.items()}, directory)


def stored_dtype(base: Path) -> torch.dtype:
    """Returns the precision in which whole weights are stored: that of the base model in directory `base`."""
    dtype: torch.dtype = AutoConfig.from_pretrained(base, local_files_only=True).dtype or torch.float32
    return dtype


def _compact(weight: Tensor) -> Tensor:
    """Returns the weight in memory of its own, as safetensors requires; it may be a view of a larger tensor."""
    return weight if weight.untyped_storage().nbytes() == weight.nbytes else weight.clone()
