"""Checkpoints of a training stage: weights, optimiser state and the best step so far, in one directory per step.

The order of the data and the random numbers of a step are functions of the run's settings and the step, so a checkpoint
need not store them.
"""

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from bonbon.files.fsync import fsync
from trainer.result_files import read_json, write_json
from trainer.training.learning.learner import Learner, Weights, refuse_non_finite

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
OWN = StateDictOptions(ignore_frozen_params=True)
WEIGHTS, OPTIMISER, BEST, STATE = "weights.safetensors", "optimiser.safetensors", "best.safetensors", "state.json"


@dataclass(slots=True)
class Checkpoint:
    """The progress of a stage.

    `best` holds the weights of the step `best_step`, whose value is the highest so far, and `best_gain` is its gain.
    `looks_since_best` counts the validations after that step, and `tokens` the tokens that the policy has drawn.
    """

    step: int = 0
    best: Weights = field(default_factory=dict)
    best_step: int = 0
    best_gain: float = -math.inf
    best_value: float = -math.inf
    looks_since_best: int = 0
    tokens: int = 0

    def see(self, gain: float, weights: Callable[[], Weights], *, value: float | None = None) -> None:
        """Records a validation of the current policy, and keeps its weights if no earlier value was as high.

        Args:
            value: The value by which policies are compared. The default is the gain. The first policy is kept even if
                its value is minus infinity.
        """
        value = gain if value is None else value
        self.looks_since_best += 1
        if value > self.best_value or self.best_gain == -math.inf:
            self.best, self.best_step, self.best_gain, self.best_value = weights(), self.step, gain, value
            self.looks_since_best = 0


class Checkpoints:
    """The last `keep` checkpoints under `directory`.

    A checkpoint appears under its name only when it is complete and on disk, so an interrupted one is never loaded.
    """

    def __init__(self, directory: Path, keep: int, accelerator: Accelerator) -> None:
        self.directory, self.keep, self.accelerator = directory, keep, accelerator

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return max(self._steps(), default=None)

    def save(self, state: Checkpoint, learner: Learner) -> None:
        """Writes a checkpoint after `state.step` optimiser steps. Every process must call it.

        Raises:
            BonbonError: A weight is not finite; nothing is written.
        """
        weights = learner.weights()
        optimiser: Any = get_optimizer_state_dict(learner.model, learner.optimiser.optimizer, options=WHOLE)
        if self.accelerator.is_main_process:
            refuse_non_finite(weights)
            flat = {f"{name}/{key}": tensor for name, of in optimiser["state"].items() for key, tensor in of.items()}
            values: dict[str, Any] = {one.name: getattr(state, one.name) for one in fields(state) if one.name != "best"}
            values["gradient_norms"] = list(learner.gradient_norms)
            self._write(state.step, _json(values), {WEIGHTS: weights, OPTIMISER: flat, BEST: state.best})
        self.accelerator.wait_for_everyone()

    def load(self, learner: Learner) -> Checkpoint | None:
        """Restores the learner from the newest checkpoint and returns its state, or None when there is none.

        Every process must call it.
        """
        step = self.latest()
        if step is None:
            return None
        path = self._path(step)
        learner.load(load_file(path / WEIGHTS))
        state: dict[str, Any] = {}
        for key, tensor in load_file(path / OPTIMISER).items():
            name, _, entry = key.rpartition("/")
            state.setdefault(name, {})[entry] = tensor
        model, optimiser = learner.model, learner.optimiser.optimizer
        # The settings of the parameter groups come from the run; a checkpoint would give them to the main process only.
        groups = get_optimizer_state_dict(model, optimiser, options=OWN)["param_groups"]
        set_optimizer_state_dict(model, optimiser, {"state": state, "param_groups": groups}, options=WHOLE)
        # A run that an earlier release began may have stored other values.
        known = {one.name for one in fields(Checkpoint)} | {"gradient_norms"}
        values = {name: value for name, value in (read_json(path / STATE) or {}).items() if name in known}
        values.setdefault("best_value", values.get("best_gain"))
        learner.gradient_norms.extend(values.pop("gradient_norms"))
        return Checkpoint(best=load_file(path / BEST), **_from_json(values))

    def _write(self, step: int, values: dict[str, Any], files: dict[str, dict[str, Tensor]]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for unfinished in self.directory.glob("*.partial"):
            shutil.rmtree(unfinished)
        final = self._path(step)
        partial = final.with_suffix(".partial")
        partial.mkdir()
        write_json(partial / STATE, values)
        for name, tensors in files.items():
            # Copies, because tied weights share memory and safetensors stores each tensor separately.
            save_file({key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}, partial / name)
            fsync(partial / name)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        fsync(self.directory)
        for old in sorted(self._steps())[: -self.keep]:
            shutil.rmtree(self._path(old))

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        found = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self.directory.iterdir())
        return [int(match[1]) for match in found if match]


def _json(values: dict[str, Any]) -> dict[str, Any]:
    """Replaces infinities, which JSON cannot represent."""
    return {name: None if value == -math.inf else value for name, value in values.items()}


def _from_json(values: dict[str, Any]) -> dict[str, Any]:
    return {name: -math.inf if value is None else value for name, value in values.items()}
