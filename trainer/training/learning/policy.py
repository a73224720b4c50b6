"""The policy that is trained: loading it and saving it."""

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
    """The policy that training starts from, with the weights that `settings.method` trains set to require gradients.

    It is the start exactly: a fresh adapter adds nothing, an adapter version is continued where it ends. The base's own
    dropout is off for good, so that training mode changes nothing but the adapter's dropout.

    Args:
        base: directory of the base model.
        start: the version to start from; None or a base version: the base.
        dtype: of the frozen weights; those that are trained are always 32-bit.

    Raises:
        UserError: the files cannot be loaded, or the method does not fit the start.
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
    """Write what an engine loads: the adapter alone, or the whole model with the base's configuration and tokenizer.

    Safetensors only. The model stays as it is.

    Args:
        weights: the model's state dictionary, gathered from all processes; see `stored`.
        base_name: what the adapter says it belongs to: a name, for a path would be another machine's.
    """
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            config.base_model_name_or_path = base_name
        # The vocabulary never changes here; peft would ask the hub whether it did.
        model.save_pretrained(directory, state_dict=weights, safe_serialization=True, save_embedding_layers=False)
        # peft's model card is a form nobody has filled in.
        (directory / "README.md").unlink(missing_ok=True)
        return
    save_whole_model(model, directory, base=base, weights=_with_frozen(model, base, weights))


def _with_frozen(model: "PreTrainedModel", base: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` and those of the model that are not trained, such as a vision tower's, as the base has them."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return weights
    dtype = next(iter(weights.values())).dtype
    frozen = load_model(base, torch.device("cpu"), dtype).state_dict()
    return {**{name: weight for name, weight in frozen.items() if name not in weights}, **weights}


def stored(model: "PreTrainedModel | PeftModel", base: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are stored: an adapter's as they are, whole ones in the base's precision.

    What is measured must be what is served, and 16-bit weights round a small update away.
    """
    if isinstance(model, PeftModel):
        return weights
    dtype = stored_dtype(base)
    return {name: weight.to(dtype) for name, weight in weights.items()}


def _disable_dropout(model: nn.Module) -> None:
    """Some models drop by a module, others by a rate that they pass to a function."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _load_adapter(model: "PreTrainedModel", start: VersionFiles) -> PeftModel:
    if not (start.directory / "adapter_model.safetensors").is_file():
        raise UserError(f"{start.name} has no adapter_model.safetensors in {start.directory}")
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
