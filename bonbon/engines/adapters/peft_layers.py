"""Removes what peft leaves on a model, and silences a warning that does not apply here."""

import warnings
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

# An adapter on a layer that shares its weights with another one is merged into weights of its own (`merge_adapter`).
warnings.filterwarnings(
    "ignore", message="Model has `tie_word_embeddings=True` and a tied layer is part of the adapter"
)


def forget_names(model: Any) -> None:
    """Removes the hooks by which peft passes each row's adapter to its layers, which stay behind when a call fails."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if "adapter_names" in getattr(hook, "keywords", ()):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def strip(model: Any) -> Any:
    """Replaces every adapter layer of `model` by the layer that it wraps, and returns the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model
