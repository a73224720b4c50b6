"""Reads and checks a LoRA adapter's files before they are added to a model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bonbon.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OUTPUT_LAYER = "lm_head"
"""The usual name of a model's output layer, by which vLLM finds an adapter on it."""

# The settings that an adapter may choose. The rest of peft's settings import modules, rewrite the base model's weights
# or need calibration data, so they must be absent or have no effect.
CHOSEN = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "use_rslora",
    "fan_in_fan_out",
)
IRRELEVANT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
NO_EFFECT: tuple[Any, ...] = (None, False, "none", {}, [])
PLAIN_STARTS: tuple[Any, ...] = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A valid adapter: its configuration, and its weights on the CPU by peft's names."""

    directory: Path
    config: LoraConfig
    weights: dict[str, Tensor]

    @property
    def rank(self) -> int:
        """Returns the highest rank of any of its modules."""
        return max(int(rank) for rank in (self.config.r, *(self.config.rank_pattern or {}).values()))

    def check(self, wanted: Mapping[str, Tensor]) -> None:
        """Raises UserError unless the weights have the names and shapes of `wanted`, the adapter's empty layers."""
        for name in sorted(wanted.keys() | self.weights.keys()):
            here = tuple(wanted[name].shape) if name in wanted else "missing"
            there = tuple(self.weights[name].shape) if name in self.weights else "missing"
            if here != there:
                raise UserError(
                    f"adapter {self.directory} does not fit the base model: {name} is {there} in the adapter's "
                    f"file and {here} on the base; serve the base it was trained on, or train it on this one"
                )

    def misfit(self, error: Exception) -> UserError:
        """Returns the error to raise when adding the adapter to the base model fails with `error`."""
        if isinstance(error, UserError):
            return error
        return UserError(
            f"adapter {self.directory} does not fit the base model ({error}); serve the base it was trained on"
        )


def read_adapter(directory: Path) -> Adapter:
    """Reads an adapter. Raises UserError, naming what is missing, unreadable, unsupported or not finite."""
    weights = read_weights(directory / WEIGHTS)
    return Adapter(directory, _config(directory / CONFIG), weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file.

    Raises UserError when it is missing, corrupt, or contains NaN or infinity.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; save the adapter with safetensors (pickled weights are never read)"
        ) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is corrupt or truncated ({error}); copy or save it again") from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} has NaN or infinite weights because its training diverged; train it again")
    return weights


def _config(path: Path) -> LoraConfig:
    try:
        settings = json.loads(path.read_text())
        kind, start = settings.get("peft_type"), settings.get("init_lora_weights")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; an adapter's directory needs it beside its weights") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a JSON object ({error}); save the adapter again") from error
    if kind != "LORA":
        raise UserError(f"{path}: peft_type {kind!r} is not supported; train a LoRA adapter")
    if start not in PLAIN_STARTS:
        raise UserError(
            f"{path}: init_lora_weights {start!r} implies a changed base; convert the adapter to plain LoRA when "
            "saving it (peft's path_initial_model_for_weight_conversion)"
        )
    known = {*CHOSEN, *IRRELEVANT, "init_lora_weights"}
    for name, value in settings.items():
        if name not in known and value not in NO_EFFECT:
            raise UserError(f"{path}: {name} = {value!r} is not supported; train the adapter without it")
    try:
        return LoraConfig(**{name: settings[name] for name in CHOSEN if name in settings}, inference_mode=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"peft refuses {path} ({error}); save the adapter again") from error
