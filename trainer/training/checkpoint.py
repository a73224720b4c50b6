"""Checkpoints of a training run: trained weights and optimiser state in safetensors, one directory a step.

The learning rate, the order of the data and the random numbers of a step are functions of the run's settings and the
step, so a checkpoint need not hold them.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_state_dict,
)

from bonbon.errors import BonbonError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
OWN = StateDictOptions(ignore_frozen_params=True)
WEIGHTS, OPTIMISER = "weights.safetensors", "optimiser.safetensors"


class Checkpoints:
    """The last `keep` checkpoints under `directory`.

    One appears under its name only when it is whole and on disk: an interrupted one is never picked up.
    """

    def __init__(self, directory: Path, keep: int, accelerator: Accelerator) -> None:
        self.directory, self.keep, self.accelerator = directory, keep, accelerator

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, None when there is none."""
        return max(self._steps(), default=None)

    def save(self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Write a checkpoint after `step` optimiser steps; every process must call it.

        Raises:
            BonbonError: a weight is not finite; nothing is written.
        """
        weights = trained_weights(model)
        optimiser_state: Any = get_optimizer_state_dict(model, optimiser, options=WHOLE)
        if self.accelerator.is_main_process:
            refuse_non_finite(weights)
            # Copies, because tied weights share memory and safetensors holds each tensor by itself.
            flat = {
                f"{name}/{key}": tensor for name, of in optimiser_state["state"].items() for key, tensor in of.items()
            }
            self._write(step, {WEIGHTS: _copies(weights), OPTIMISER: _copies(flat)})
        self.accelerator.wait_for_everyone()

    def load(self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Put model and optimiser back to where `save` found them; every process must call it."""
        path = self._path(step)
        state: dict[str, Any] = {}
        for key, tensor in load_file(path / OPTIMISER).items():
            name, _, field = key.rpartition("/")
            state.setdefault(name, {})[field] = tensor
        # The settings of the groups are the run's own; only the main process would be given them whole.
        groups = get_optimizer_state_dict(model, optimiser, options=OWN)["param_groups"]
        set_state_dict(
            model,
            optimiser,
            model_state_dict=load_file(path / WEIGHTS),  # type: ignore[arg-type]
            optim_state_dict={"state": state, "param_groups": groups},
            options=WHOLE,
        )

    def _write(self, step: int, files: dict[str, dict[str, Tensor]]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for unfinished in self.directory.glob("*.partial"):
            shutil.rmtree(unfinished)
        final = self._path(step)
        partial = final.with_suffix(".partial")
        partial.mkdir()
        for name, tensors in files.items():
            save_file(tensors, partial / name)
            sync(partial / name)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(self.directory)
        for old in sorted(self._steps())[: -self.keep]:
            shutil.rmtree(self._path(old))

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        found = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self.directory.iterdir())
        return [int(match[1]) for match in found if match]


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name, gathered on the CPU of the main process; every process must call it."""
    weights: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
    return weights


def refuse_non_finite(weights: dict[str, Tensor]) -> None:
    """Raise BonbonError naming the first tensor with a NaN or an infinity in it."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise BonbonError(f"the trained weight {name} is not finite; lower train.learning_rate")


def sync(path: Path) -> None:
    """Return when the file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
