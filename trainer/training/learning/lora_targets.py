"""Chooses the modules of a model that get an adapter, and freezes the weights that text does not reach."""

import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from bonbon.engines.adapters.adapter_files import OUTPUT_LAYER
from bonbon.engines.adapters.base_check import without_weights
from bonbon.engines.text.model_config import read_config
from bonbon.errors import UserError
from bonbon.settings import ALL_LINEAR, TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LINEAR = (nn.Linear, Conv1D)
ADAPTABLE = (*LINEAR, nn.Embedding)
TOKENS = 16
"""Number of tokens of the text that reveals which modules a model calls."""


def check_targets(base: Path, settings: TrainSettings, unadaptable: Collection[str] = ()) -> None:
    """Raises UserError when the model in `base`, or the engine, does not allow an adapter with these settings.

    Does not read the model's weights.

    Args:
        unadaptable: Names of layers on which the engine cannot serve adapters.
    """
    every = settings.lora_targets == ALL_LINEAR
    if settings.method != "lora":
        return
    # `all-linear` leaves the output layer out.
    if every and not settings.lora_output_layer and not set(unadaptable) - {OUTPUT_LAYER}:
        return
    read_config(base)  # raises an error that explains an invalid configuration
    model = without_weights(AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False))
    output = _output_layer(model) if settings.lora_output_layer else None
    if output is not None and output.rpartition(".")[2] in unadaptable:
        raise UserError(
            f"train.lora_output_layer = true, but this vLLM cannot serve an adapter on the output layer, {output}, of "
            "this model; set it to false",
            param="train.lora_output_layer",
        )
    targets = _linear(model) if every else _named(model, settings, lambda name: True)
    names = dict.fromkeys(name.rpartition(".")[2] for name in targets)
    if refused := [name for name in names if name in unadaptable]:
        others = ",".join(name for name in names if name not in unadaptable)
        raise UserError(
            f"train.lora_targets = {settings.lora_targets!r} includes {', '.join(refused)}, on which this vLLM cannot "
            f"serve an adapter of this model; set train.lora_targets = {others!r}, or train.method = 'full'",
            param="train.lora_targets",
        )


def choose_targets(model: "PreTrainedModel", settings: TrainSettings) -> list[str]:
    """Returns the names of the modules that get an adapter.

    `all-linear` selects every linear layer that the model calls when it reads text, apart from its output layer, which
    `train.lora_output_layer` adds. It leaves out routers of experts that return more than a tensor, layers whose
    weights the model uses without calling them, and layers that peft refuses or, in some mixtures of experts, mistakes
    for experts whose weights are one tensor.

    Raises:
        UserError: A named module does not exist, cannot be adapted, or is not used for text.
    """
    called = _called(model)
    if settings.lora_targets == ALL_LINEAR:
        chosen = _servable(model, settings, called)
    else:
        chosen = _named(model, settings, lambda name: _pattern(name) in called)
    output = _output_layer(model)
    if not settings.lora_output_layer or output is None or output in chosen or _pattern(output) not in called:
        return chosen
    return [*chosen, output]


def _servable(model: "PreTrainedModel", settings: TrainSettings, called: Collection[str]) -> list[str]:
    """Returns the linear layers in `called` but the output layer, for which every engine can serve an adapter."""
    linear = [name for name in _linear(model) if _pattern(name) in called]
    if not _problem(model.config, settings, linear):
        return linear
    kinds: dict[str, list[str]] = {}
    for name in linear:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    servable = [name for names in kinds.values() if not _problem(model.config, settings, names) for name in names]
    if not servable:
        raise _misfit(settings, "it has no linear layer that can be adapted")
    return servable


def freeze_unread(model: "PreTrainedModel") -> None:
    """Freezes weights that only inputs other than text reach, such as a vision tower."""
    read = {id(parameter) for parameter in model.get_decoder().parameters()}
    output = model.get_output_embeddings()
    if output is not None:
        read |= {id(parameter) for parameter in output.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in read:
            parameter.requires_grad_(False)


def lora_config(settings: TrainSettings, targets: list[str]) -> LoraConfig:
    """Returns the configuration of an adapter on the modules `targets`."""
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def _linear(model: "PreTrainedModel") -> list[str]:
    output = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, LINEAR) and module is not output]


def _output_layer(model: "PreTrainedModel") -> str | None:
    """Returns the name of the model's output layer, or None if it has no linear one."""
    output = model.get_output_embeddings()
    names = (name for name, module in model.named_modules() if module is output)
    return next(names, None) if isinstance(output, LINEAR) else None


def _misfit(settings: TrainSettings, why: str) -> UserError:
    return UserError(
        f"train.lora_targets = {settings.lora_targets!r} cannot be trained on this model: {why}; set "
        "train.lora_targets to other linear layers, such as q_proj,v_proj, or train.method = 'full'",
        param="train.lora_targets",
    )


def _named(model: "PreTrainedModel", settings: TrainSettings, usable: Callable[[str], bool]) -> list[str]:
    """Returns the modules that the setting lists by name, by short names where these are unambiguous."""
    names = [name.strip() for name in settings.lora_targets.split(",") if name.strip()]
    chosen: list[str] = []
    others = False
    for target in names:
        modules = [(name, module) for name, module in model.named_modules() if f".{name}".endswith(f".{target}")]
        for _, module in modules:
            _refuse_module(model, module, target, settings)
        found = [name for name, _ in modules if usable(name)]
        if modules and not found:
            raise _misfit(settings, f"it calls no {target} that returns one tensor when it reads text")
        others |= len(found) < len(modules)
        chosen += found
    targets = chosen if others else names
    if problem := _problem(model.config, settings, targets):
        raise _misfit(settings, problem)
    return targets


def _problem(config: Any, settings: TrainSettings, targets: list[str]) -> str:
    """Returns why peft cannot adapt the modules `targets` of a model with this configuration, or an empty string."""
    if not targets:
        return "no module is named"
    try:
        with warnings.catch_warnings(action="ignore"):  # peft's warnings about a configuration that is only being tried
            adapted = PeftModel(without_weights(config), lora_config(settings, targets))
    except ValueError as error:
        return str(error)
    tensors = {
        name for found in adapted.peft_config.values() for name in getattr(found, "target_parameters", None) or ()
    }
    return f"it keeps the weights of all experts in one tensor, such as {min(tensors)}" if tensors else ""


def _refuse_module(model: "PreTrainedModel", module: nn.Module, target: str, settings: TrainSettings) -> None:
    if not isinstance(module, ADAPTABLE):
        raise _misfit(settings, f"{target} is neither a linear layer nor an embedding but {type(module).__name__}")
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    tied = written is not None and read.weight is written.weight
    if tied and module in (read, written):
        how = "; train.lora_output_layer = true adapts the output alone" if module is written else ""
        raise _misfit(
            settings,
            f"{target} shares its weights between the model's input and its output, and an adapter changes one of "
            f"them{how}",
        )


def _called(model: "PreTrainedModel") -> set[str]:
    """Returns patterns of the names of modules that the model calls when it reads text and that return one tensor."""
    called: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                called.add(_pattern(name))

        return hook

    adaptable = [(name, module) for name, module in model.named_modules() if isinstance(module, ADAPTABLE)]
    hooks = [module.register_forward_hook(note(name)) for name, module in adaptable]
    ids = torch.arange(TOKENS, device=model.device) % model.get_input_embeddings().num_embeddings
    try:
        with torch.no_grad():
            model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _pattern(name: str) -> str:
    """Returns a module's name without its numbers, because not every expert reads every text."""
    return re.sub(r"\.\d+(?=\.|$)", ".#", name)
