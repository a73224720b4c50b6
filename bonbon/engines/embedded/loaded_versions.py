"""The versions that the embedded engine holds in memory."""

import gc
from pathlib import Path
from typing import Any

import structlog
import torch

from bonbon.engines.adapters.adapter_files import Adapter
from bonbon.engines.embedded.embedded_candidate import Lane, Loaded
from bonbon.engines.embedded.policy import BASE, Policy
from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.errors import UserError

log = structlog.get_logger(__name__)


class Versions:
    """The base model, its adapters, and the models with full weights.

    Only the worker's thread may change them; any thread may read `loaded`.

    Args:
        name: The name of the base version.
        directory: The directory of the base model.
        tokenizer: The tokenizer of the base model.
        device: A torch device, or auto.
        dtype: The name of a torch dtype, or auto.

    Raises:
        UserError: The device is not available, or the base model cannot be loaded.
    """

    def __init__(self, name: str, directory: Path, tokenizer: Any, *, device: str, dtype: str) -> None:
        self._device = _device(device)
        keep = dtype == "auto" and self._device.type != "cpu"
        self._dtype = None if keep else torch.float32 if dtype == "auto" else getattr(torch, dtype)
        self._name, self._tokenizer = name, tokenizer
        self.base = Policy(directory, tokenizer, self._device, self._dtype)
        self.loaded = {name: Loaded(name, BASE, Lane(self.base))}

    def load(self, version: VersionFiles, adapter: Adapter | None) -> None:
        """Loads a version; an adapter has been read before. Raises UserError when the version does not fit the base."""
        if version.name in self.loaded:
            return
        if version.kind is VersionKind.BASE:
            raise UserError(
                f"{version.name} is a base model, but this engine serves the base {self._name}; "
                "start another service for it"
            )
        if adapter:
            key = self.base.attach(adapter)
            mixes = self.base.mixes(key)
            if not mixes:
                log.info(
                    "the model cannot mix this adapter with others, so it gets its own batches", version=version.name
                )
            loaded = Loaded(version.name, key, Lane(self.base, None if mixes else key))
        else:
            loaded = Loaded(version.name, BASE, Lane(self._full(version)))
        self.loaded[version.name] = loaded

    def unload(self, name: str) -> Loaded | None:
        """Unloads a version and returns it; returns None when there is nothing to unload. The base stays loaded."""
        if name == self._name:
            return None
        loaded = self.loaded.pop(name, None)
        if loaded and loaded.lane.policy is self.base:
            self.base.detach(loaded.adapter)
        return loaded

    def _full(self, version: VersionFiles) -> Policy:
        policy = Policy(version.directory, self._tokenizer, self._device, self._dtype)
        for what in ("model_type", "vocab_size", "max_position_embeddings"):
            here, there = getattr(self.base.config, what, None), getattr(policy.config, what, None)
            if here != there:
                raise UserError(
                    f"version {version.name} has {what} {there}, but the base {self._name} has {here}; "
                    "serve the base that it was trained from"
                )
        return policy


def free_memory() -> None:
    """Frees the memory of models that are no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # torch raises AssertionError when it was built without support for the device.
        raise UserError(
            f"engine_options.device = {name!r} cannot be used ({error}); choose auto, cpu or an available GPU",
            param="engine_options.device",
        ) from error
    return device
