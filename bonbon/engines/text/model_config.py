"""Reads a model's configuration."""

from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from bonbon.errors import UserError
from bonbon.files.load_errors import why


def read_config(directory: Path) -> Any:
    """Returns the configuration of the language model in `directory`; for a multimodal model, that of its text part.

    Raises UserError when it cannot be read without running code.
    """
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the configuration of model {directory} cannot be read ({why(error)}); it must be a causal language "
            "model in Hugging Face format"
        ) from error
    return config.get_text_config()


def keeps_state(config: Any) -> bool:
    """Returns whether a model keeps more than the keys and values of its tokens, such as a recurrent state."""
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    layers = DynamicCache(config=config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return getattr(model, "_is_stateful", False) or not plain
