"""Where a model's files are, and what the model is called."""

import json
import re
from pathlib import Path

from bonbon.errors import UserError
from bonbon.extras import install

LONGEST_NAME = 200
"""Characters of a base's name; those of its versions are longer."""
# No Python, no pickles: only what is read without running anything.
PATTERNS = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]


def resolve_model(name_or_dir: str, revision: str | None = None, *, extra: str = "embedded") -> Path:
    """The directory of a model in Hugging Face format: the one named, or a hub model's, downloaded when it is not here.

    `extra` is what to install where nothing here can download a model.

    Raises:
        UserError: there is no such directory or hub model, or it has no safetensors weights or no config.json that is a
            JSON object.
    """
    if not name_or_dir:
        raise UserError("no model is named; set model (BONBON_MODEL) to a directory or a hub name", param="model")
    directory = Path(name_or_dir).expanduser()
    if not directory.is_dir():
        directory = _download(name_or_dir, revision, extra)
    for pattern, what in (("config.json", "config.json"), ("*.safetensors", "safetensors weights")):
        if not any(directory.glob(pattern)):
            raise UserError(
                f"model {name_or_dir!r}: {directory} has no {what}; give a model in Hugging Face format whose weights "
                "are saved as safetensors (pickled weights are never read)",
                param="model",
            )
    _check_config(name_or_dir, directory / "config.json")
    return directory.absolute()


def served_name(name_or_dir: str) -> str:
    """The name a base is served under: the last part of its directory or hub name, in lower case, not too long."""
    last = Path(name_or_dir).expanduser().absolute().name
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-.")
    name = name[:LONGEST_NAME]
    if not name:
        raise UserError(f"model {name_or_dir!r} gives no name to serve it under; name a directory", param="model")
    return name


def is_hub_name(name: str) -> bool:
    """Whether a `name` that is no directory may be that of a model on the hub, such as `gpt2` or `owner/model`."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is not None


def _check_config(name: str, file: Path) -> None:
    """Raise UserError unless `file` is a JSON object: transformers, which reads it first, would blame the tokenizer."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {name!r}: {file} cannot be read as JSON ({error}); copy or save the model again", param="model"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"model {name!r}: {file} is not a JSON object; copy or save the model again", param="model")


def _download(name: str, revision: str | None, extra: str) -> Path:
    if not is_hub_name(name):
        raise UserError(
            f"model {name!r}: there is no such directory; check the path, or give a hub name", param="model"
        )
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise UserError(
            f"model {name!r} is not a directory here, and a hub model needs huggingface_hub; "
            f"check the path, or {install(extra)}",
            param="model",
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except (OSError, ValueError) as error:  # what the hub's errors and those of its transport derive from
        raise UserError(
            f"model {name!r} is neither a directory here nor a hub model that can be fetched "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); check the name, the revision, the network and "
            "HF_TOKEN",
            param="model",
        ) from error
