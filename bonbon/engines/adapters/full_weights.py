"""Writing a model with all of its weights, in Hugging Face format."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import AutoConfig
from transformers.core_model_loading import revert_weight_conversion

from bonbon.manifest import MANIFEST

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COPIED_SUFFIXES = {".json", ".jinja", ".txt", ".model"}


def save_whole_model(model: "PreTrainedModel", directory: Path, *, base: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `weights` as safetensors into a new directory, with the configuration and tokenizer of the model in `base`.

    Args:
        model: has the architecture of the base; it stays as it is.
        weights: every weight of the model's state dictionary.
    """
    directory.mkdir(parents=True)
    # The base's own files, unread: transformers refuses to save some configurations that it has loaded.
    for file in sorted(base.iterdir()):
        about_weights = file.name == MANIFEST or file.name.endswith(".index.json")
        if file.suffix in COPIED_SUFFIXES and not about_weights:
            shutil.copyfile(file, directory / file.name)
    untied = {name: weight for name, weight in weights.items() if name not in model.all_tied_weights_keys}
    # By the names in the base's files: transformers loads some weights, such as those of experts, as one tensor.
    original = revert_weight_conversion(model, untied)
    save_torch_state_dict({name: _compact(weight) for name, weight in original.items()}, directory)


def stored_dtype(base: Path) -> torch.dtype:
    """The precision in which whole weights are stored: that of the base model in directory `base`."""
    dtype: torch.dtype = AutoConfig.from_pretrained(base, local_files_only=True).dtype or torch.float32
    return dtype


def _compact(weight: Tensor) -> Tensor:
    """The weight in memory of its own, as safetensors has it: it may be a part of a tensor."""
    return weight if weight.untyped_storage().nbytes() == weight.nbytes else weight.clone()
