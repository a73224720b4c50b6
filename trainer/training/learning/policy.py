"""Loads and saves the policy that is trained."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn

from bonbon.engines.adapters.full_weights import save_whole_model, stored_dtype
from bonbon.engines.embedded.policy import load_model
from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.settings import TrainSettings
from trainer.training.learning.lora_targets import choose_targets, freeze_unread, lora_config
from trainer.training.start import check_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_policy(
    base: Path, start: VersionFiles | None, settings: TrainSettings, *, dtype: torch.dtype = torch.float32
) -> "PreTrainedModel | PeftModel":
    """Loads the policy that training starts from, with the weights that `settings.method` trains set to require
    gradients.

    The policy equals the start exactly: a fresh adapter adds nothing, and an adapter version continues from its
    weights. The base's own dropout stays disabled, so that training mode changes nothing but the adapter's dropout.

    Args:
        base: Directory of the base model.
        start: The version to start from; None or a base version for the base.
        dtype: Type of the frozen weights; trained weights are always 32-bit.

    Raises:
        UserError: The files cannot be loaded, or the method does not fit the start.
    """
    check_start(base, start, settings)
    kind = VersionKind.BASE if start is None else start.kind
    if settings.method == "full":
        dtype = torch.float32
    source = start.directory if start and kind is VersionKind.FULL else base
    model: PreTrainedModel = load_model(source, torch.device("cpu"), dtype).requires_grad_(False)
    _disable_dropout(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if kind is VersionKind.ADAPTER and start is not None:
        adapted = _load_adapter(model, start)
        if settings.method == "lora":
            return adapted
        model = adapted.merge_and_unload()
    if settings.method == "lora":
        return _add_adapter(model, settings)
    freeze_unread(model.requires_grad_(True))
    return model


def save_policy(
    model: "PreTrainedModel | PeftModel", directory: Path, *, base: Path, base_name: str, weights: dict[str, Tensor]
) -> None:
    """Writes what an engine loads: the adapter alone, or the whole model with the base's configuration and tokenizer.

    The files are in safetensors format. The model is not changed.

    Args:
        weights: The model's state dictionary, gathered from all processes; see `stored`.
        base_name: The base that the adapter's configuration names. It is a name, because a path would not be valid
            elsewhere.
    """
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            config.base_model_name_or_path = base_name
        # The vocabulary never changes here, and peft would query the hub to find out.
        model.save_pretrained(directory, state_dict=weights, safe_serialization=True, save_embedding_layers=False)
        # peft's model card is an empty template.
        (directory / "README.md").unlink(missing_ok=True)
        return
    save_whole_model(model, directory, base=base, weights=_with_frozen(model, base, weights))


def _with_frozen(model: "PreTrainedModel", base: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `weights` with the base's values of the weights that are not trained, such as a vision tower's."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return weights
    dtype = next(iter(weights.values())).dtype
    frozen = load_model(base, torch.device("cpu"), dtype).state_dict()
    return {**{name: weight for name, weight in frozen.items() if name not in weights}, **weights}


def stored(model: "PreTrainedModel | PeftModel", base: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights as they are stored: an adapter's unchanged, whole ones in the base's precision.

    What is measured must be what is served, and 16-bit weights round a small update away.
    """
    if isinstance(model, PeftModel):
        return weights
    dtype = stored_dtype(base)
    return {name: weight.to(dtype) for name, weight in weights.items()}


def _disable_dropout(model: nn.Module) -> None:
    """Disables dropout that models apply by a module or by a rate that they pass to a function."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _load_adapter(model: "PreTrainedModel", start: VersionFiles) -> PeftModel:
    if not (start.directory / "adapter_model.safetensors").is_file():
        raise UserError(f"{start.name} is missing adapter_model.safetensors in {start.directory}")
    try:
        return PeftModel.from_pretrained(model, start.directory, is_trainable=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{start.name} in {start.directory} does not fit the base model: {error}") from error


def _add_adapter(model: "PreTrainedModel", settings: TrainSettings) -> PeftModel:
    targets = choose_targets(model, settings)
    torch.manual_seed(settings.seed)
    adapted = get_peft_model(model, lora_config(settings, targets))
    assert isinstance(adapted, PeftModel)
    return adapted
