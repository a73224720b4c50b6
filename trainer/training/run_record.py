"""Writes `run.json`, which identifies the run in a directory, so that a restart resumes that run and no other."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from bonbon import __version__
from bonbon.errors import UserError
from bonbon.files.manifest import names_base
from bonbon.pairs.reading.snapshot import Snapshot, Split
from bonbon.settings import TrainSettings
from trainer.result_files import read_json, write_json
from trainer.run_directory import RUN

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors")
# These settings change a run's speed and its files, not its result.
INDIFFERENT = {
    "micro_batch_size",
    "gradient_checkpointing",
    "checkpoint_every",
    "keep_checkpoints",
    "draws_in_flight",
    "threads",
    "processes",
    "sharding",
    "launcher",
}


class Digests(NamedTuple):
    """Digests of the files of the base and of the version that training starts from."""

    base: str
    start: str


def describe(
    settings: TrainSettings, snapshot: Snapshot, *, n: int, base_name: str, digests: Digests
) -> dict[str, Any]:
    """Returns what identifies a run, and the versions of the software that made it."""
    return {
        "train": settings.model_dump(mode="json"),
        "n": n,
        "base": {"name": base_name, "digest": digests.base},
        "start": {"name": snapshot.version, "digest": digests.start},
        "snapshot": {
            "hash": snapshot.hash,
            **{f"{split}_groups": getattr(snapshot, f"{split}_groups") for split in Split},
            "reward": {"name": snapshot.reward_name, "version": snapshot.reward_version},
        },
        "libraries": {
            "bonbon": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def claim(run_dir: Path, description: dict[str, Any], *, base: Path) -> None:
    """Records the run in `run_dir`, or checks that it is the recorded one.

    Args:
        base: Directory of the base, which an earlier release may have recorded with another digest.

    Raises:
        UserError: The directory holds another run; the message lists the differences.
    """
    path = run_dir / RUN
    if recorded := read_json(path):
        wanted = _identity(description)
        if recorded["base"]["digest"] != wanted["base"]:
            _rename_base(recorded, base, wanted["base"])
            write_json(path, recorded)
        found = _identity(recorded)
        if differing := sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)):
            changes = ", ".join(f"{key} {found.get(key)} -> {wanted.get(key)}" for key in differing)
            raise UserError(f"{run_dir} holds another run ({changes}): name a new run directory, or delete this one")
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, description)


def _rename_base(recorded: dict[str, Any], base: Path, digest: str) -> None:
    """Replaces the base's digest of an earlier release by today's when both describe the same files."""
    earlier = recorded["base"]["digest"]
    if names_base(earlier, base, digest):
        for name in ("base", "start"):
            if recorded[name]["digest"] == earlier:
                recorded[name]["digest"] = digest


def _identity(description: dict[str, Any]) -> dict[str, Any]:
    # Earlier releases did not record the choice.
    chosen = bool(description["train"].get("lora_output_layer"))
    recorded = description["train"] | {"lora_output_layer": chosen}
    train = {f"train.{key}": value for key, value in recorded.items() if key not in INDIFFERENT}
    return {
        "n": description["n"],
        "base": description["base"]["digest"],
        "start": description["start"]["digest"],
        "snapshot": description["snapshot"]["hash"],
        **train,
    }
