"""Locates a model's files, and derives the name that the model is served under."""

import json
import re
from pathlib import Path

from bonbon.errors import UserError
from bonbon.extras import install

LONGEST_NAME = 200
"""The maximum number of characters in a base's name; the names of its versions are longer."""
# Only files that can be read without running code: no Python files and no pickles.
PATTERNS = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]


def resolve_model(name_or_dir: str, revision: str | None = None, *, extra: str = "embedded") -> Path:
    """Returns the directory of a model in Hugging Face format; downloads a hub model that is not in the cache.

    `extra` is what to install where nothing here can download a model.

    Raises:
        UserError: There is no such directory or hub model, or it has no safetensors weights or no config.json that is a
            JSON object.
    """
    if not name_or_dir:
        raise UserError("no model is configured; set model (BONBON_MODEL) to a directory or a hub name", param="model")
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
    """Returns the name to serve a base under: the last part of its directory or hub name, lower-cased and truncated."""
    last = Path(name_or_dir).expanduser().absolute().name
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-.")
    name = name[:LONGEST_NAME]
    if not name:
        raise UserError(
            f"model {name_or_dir!r} cannot be turned into a name to serve it under; rename its directory so that it "
            "contains letters or digits",
            param="model",
        )
    return name


def is_hub_name(name: str) -> bool:
    """Returns whether `name`, which is not a directory, may be a model on the hub, such as `gpt2` or `owner/model`."""
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
            f"model {name!r} is not an existing directory; check the path, or give a hub name", param="model"
        )
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise UserError(
            f"model {name!r} is not an existing directory, and downloading a hub model needs huggingface_hub; "
            f"check the path, or run {install(extra)}",
            param="model",
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except (OSError, ValueError) as error:  # The base classes of the errors of the hub and of its HTTP client.
        raise UserError(
            f"model {name!r} is neither an existing directory nor a hub model that can be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); check the name, the revision, the network and "
            "HF_TOKEN",
            param="model",
        ) from error
