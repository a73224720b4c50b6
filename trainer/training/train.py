"""Training: from a snapshot of groups to an adapter or a whole model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bonbon.engines.base import VersionKind
from bonbon.errors import UserError
from bonbon.modelfiles import served_name
from bonbon.pairs.snapshot import Snapshot, read_snapshot
from bonbon.registry.manifest import make_manifest
from bonbon.settings import Settings, TrainSettings
from trainer.bars import Bars
from trainer.data.groups import Groups
from trainer.training.accelerator import make_accelerator
from trainer.training.metrics import latest_metrics
from trainer.training.policy import load_policy
from trainer.training.run import Run
from trainer.training.run_record import claim, describe
from trainer.training.schedule import count_steps

if TYPE_CHECKING:
    from bonbon.registry.records import Version


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run: `output` is an adapter's or a whole model's directory, as `kind` says.

    `pairs` were trained on in `steps` optimiser steps; `metrics` has the last reported value under each name.
    """

    run_dir: Path
    output: Path
    kind: VersionKind
    steps: int
    pairs: int
    metrics: dict[str, float]


def train(
    settings: Settings,
    snapshot: Snapshot,
    run_dir: Path,
    *,
    base: Path,
    reference: "Version | None" = None,
    progress: bool = True,
) -> TrainingResult:
    """Train on `snapshot` in `run_dir`; an interrupted run goes on from its last checkpoint, a finished one is kept.

    Args:
        base: directory of the base model.
        reference: the version that sampled the snapshot. None or a base version: the base itself; another version:
            training continues from it.

    Raises:
        UserError: snapshot, base, reference and settings do not belong together, or `run_dir` holds another run.
        BonbonError: the loss, a gradient or a weight is not finite; the last checkpoint before that is kept.
    """
    config = settings.train
    if config.threads:
        torch.set_num_threads(config.threads)
    base_digest, reference_digest = _refuse_strangers(snapshot, base, reference)
    groups = Groups(snapshot.groups_file, pool=config.loss == "bonbon" and config.alpha == "auto")
    accelerator = make_accelerator(config)
    accelerator.gradient_accumulation_steps = _accumulation(config, len(groups.train), accelerator.num_processes)
    base_name = served_name(settings.model or str(base))
    if accelerator.is_main_process:
        claim(
            run_dir,
            describe(config, snapshot, base_name=base_name, base_digest=base_digest, reference_digest=reference_digest),
        )
    accelerator.wait_for_everyone()
    output = run_dir / "output"
    if not output.is_dir():
        dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        policy = load_policy(base, reference.files if reference else None, config, dtype=dtype)
        key = f"{snapshot.hash} {reference_digest}"
        with Bars(show=progress and accelerator.is_main_process) as bar:
            run = Run(config, policy, groups, run_dir, accelerator, key=key, progress=bar)
            run.train()
            run.save(output, base=base, base_name=base_name)
        accelerator.free_memory()
    return TrainingResult(
        run_dir,
        output,
        VersionKind.ADAPTER if config.method == "lora" else VersionKind.FULL,
        count_steps(config, len(groups.train)),
        len(groups.train),
        latest_metrics(run_dir),
    )


def _refuse_strangers(snapshot: Snapshot, base: Path, reference: "Version | None") -> tuple[str, str]:
    """Digests of the base and of the reference, once it is sure that they and the snapshot belong together."""
    if read_snapshot(snapshot.path).hash != snapshot.hash:
        raise UserError(f"{snapshot.path} holds another snapshot than {snapshot.hash}; take a new one")
    digest = make_manifest(base).digest
    # A registry that did not know the base left it empty; then the logged log-probabilities alone can tell.
    if snapshot.base_digest and snapshot.base_digest != digest:
        raise UserError(
            f"the snapshot was sampled on a base with digest {snapshot.base_digest[:12]}, but {base} has "
            f"{digest[:12]}: train on the model that answered, its files unchanged",
            param="model",
        )
    if reference is None:
        return digest, digest
    if snapshot.version != reference.name:
        raise UserError(
            f"the snapshot was sampled from {snapshot.version}, but the reference is {reference.name}: the reference "
            "must be the sampler; take a snapshot of its groups, or name the other reference",
            param="reference",
        )
    if make_manifest(reference.directory).digest != reference.digest:
        raise UserError(
            f"the files of {reference.name} in {reference.directory} are not those that were registered; restore them"
        )
    return digest, reference.digest


def _accumulation(config: TrainSettings, pairs: int, processes: int) -> int:
    """Forward passes per optimiser step in each process."""
    if pairs < config.min_pairs:
        raise UserError(
            f"the snapshot has {pairs} clean pairs to train on, fewer than train.min_pairs = {config.min_pairs}: "
            "answer more requests first, or lower it",
            param="train.min_pairs",
        )
    if pairs < config.batch_size:
        raise UserError(
            f"train.batch_size = {config.batch_size} is more than the snapshot's {pairs} pairs: lower it",
            param="train.batch_size",
        )
    together = config.micro_batch_size * processes
    if config.batch_size % together:
        raise UserError(
            f"train.batch_size = {config.batch_size} is no multiple of train.micro_batch_size = "
            f"{config.micro_batch_size}" + (f" times {processes} processes" if processes > 1 else ""),
            param="train.micro_batch_size",
        )
    return config.batch_size // together
