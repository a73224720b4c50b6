"""`run.json`: what a run directory holds the run of, so that a restart resumes that run and no other."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonbon.errors import UserError
from bonbon.settings import TrainSettings

if TYPE_CHECKING:
    from bonbon.pairs.snapshot import Snapshot
    from bonbon.registry.records import Version

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors", "bonbon")
# These change how fast a run is and what it leaves behind, not what it computes.
INDIFFERENT = {"micro_batch_size", "checkpoint_every", "keep_checkpoints", "threads"}


def describe(
    settings: TrainSettings, snapshot: "Snapshot", *, base_name: str, reference: "Version | None"
) -> dict[str, Any]:
    """What makes a run the run it is, and what it was made with."""
    return {
        "train": settings.model_dump(mode="json"),
        "base": {"name": base_name, "digest": snapshot.base_digest},
        "reference": {"name": reference.name, "digest": reference.digest} if reference else None,
        "snapshot": {
            "hash": snapshot.hash,
            "version": snapshot.version,
            "groups": snapshot.groups,
            "held_out_groups": snapshot.held_out_groups,
            "reward": {"name": snapshot.reward_name, "version": snapshot.reward_version},
        },
        "libraries": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def claim(run_dir: Path, description: dict[str, Any]) -> None:
    """Make `run_dir` this run's, or find that it already is.

    Raises:
        UserError: the directory holds another run; the message says in what it differs.
    """
    path = run_dir / "run.json"
    if path.exists():
        found, wanted = _identity(json.loads(path.read_text())), _identity(description)
        if differing := sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)):
            changes = ", ".join(f"{key} {found.get(key)} -> {wanted.get(key)}" for key in differing)
            raise UserError(f"{run_dir} holds another run ({changes}): name a new run directory, or delete this one")
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(description, indent=2) + "\n")
    partial.replace(path)


def _identity(description: dict[str, Any]) -> dict[str, Any]:
    train = {f"train.{key}": value for key, value in description["train"].items() if key not in INDIFFERENT}
    return {
        "base": description["base"]["digest"],
        "reference": description["reference"] and description["reference"]["digest"],
        "snapshot": description["snapshot"]["hash"],
        **train,
    }
