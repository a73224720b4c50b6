"""Loads the files of a sequence-classification model, and computes the digest that identifies them."""

from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification

from bonbon.errors import UserError
from bonbon.files.load_errors import needs_code, why

DIGESTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def digest(directory: Path) -> str:
    """Returns the SHA-256 over the names and contents of a model's weights, configuration and tokenizer.

    Reads all of them.
    """
    total = sha256()
    for path in sorted({path for pattern in DIGESTED for path in directory.glob(pattern)}):
        with path.open("rb") as file:
            total.update(f"{path.name} {file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def load_classifier(directory: Path, device: torch.device, dtype: str) -> Any:
    """Returns the model in evaluation mode on `device`.

    Args:
        dtype: A torch floating type, or `auto` for the checkpoint's type on a GPU and 32-bit elsewhere.

    Raises:
        UserError: The model cannot be loaded, lacks weights, such as those of the classification head, or has weights
            that are not finite.
    """
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            directory,
            config=config,
            dtype=_dtype(dtype, device),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        remedy = "; serve it with a scoring service of your own, as a reward of kind http" if needs_code(error) else ""
        raise UserError(f"reward model {directory} cannot be loaded: {why(error)}{remedy}", param="reward") from error
    missing = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if missing:
        raise UserError(
            f"{directory} is not a trained reward model: its weights lack {', '.join(missing[:3])}; "
            "use a sequence-classification model with safetensors"
        )
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"reward model {directory}: {name} has NaN or infinite weights; copy or train it again", param="reward"
            )
    return model.eval().to(device)


def _dtype(name: str, device: torch.device) -> Any:
    if name == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    return getattr(torch, name)
