"""Trains an adapter or a whole model from a snapshot of groups."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bonbon.engines.engine import VersionKind
from bonbon.engines.text.model_config import read_config
from bonbon.errors import UserError
from bonbon.files.manifest import base_digest, make_manifest, names_base
from bonbon.files.model_files import served_name
from bonbon.pairs.reading.snapshot import Snapshot, Split, read_snapshot
from bonbon.progress import Bars
from bonbon.settings import Settings, TrainSettings
from trainer.data.groups import Groups
from trainer.training.accelerator import make_accelerator
from trainer.training.learning.candidate_selection import trainable_rows
from trainer.training.metrics import latest_metrics
from trainer.training.run import Run
from trainer.training.run_record import Digests, claim, describe
from trainer.training.stages.draws import DrawBox, DrawOrder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from bonbon.registry.version_records import Version


BASE_ORDER = 99
"""The number of the base's own draws among a run's orders."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run. `output` is the directory of an adapter or of a whole model, as `kind` says.

    `groups` is the number of groups trained on in `steps` optimiser steps; `metrics` holds the last value of each name.
    """

    run_dir: Path
    output: Path
    kind: VersionKind
    steps: int
    groups: int
    metrics: dict[str, float]


def train(
    settings: Settings,
    snapshot: Snapshot,
    run_dir: Path,
    *,
    base: Path,
    n: int,
    start: "Version | None" = None,
    draws: bool = False,
    progress: bool = True,
) -> TrainingResult:
    """Trains on `snapshot` in `run_dir`. An interrupted run continues from its last checkpoint; a finished one is kept.

    Args:
        base: Directory of the base model, which is the reference policy.
        n: The n of the best-of-n that is imitated.
        start: The version that training starts from. None or a base version for the base itself.
        draws: Whether another process fulfils the run's orders for draws (`trainer.training.stages.draws`). The policy
            is then interpolated by its own draws and, according to `train.refine`, learns from them.

    Raises:
        UserError: Snapshot, base, start and settings do not fit together, or `run_dir` holds another run.
        BonbonError: The loss, a gradient or a weight is not finite, or drawing failed; the last checkpoint is kept.
    """
    config = settings.train
    if config.threads:
        torch.set_num_threads(config.threads)
    digests = _refuse_strangers(snapshot, base, start)
    accelerator = make_accelerator(config)
    base_name = served_name(settings.model or str(base))
    if accelerator.is_main_process:
        claim(run_dir, describe(config, snapshot, n=n, base_name=base_name, digests=digests), base=base)
    accelerator.wait_for_everyone()
    vocabulary = read_config(base).vocab_size
    groups = _read(config, snapshot, run_dir, accelerator, n=n, draws=draws, vocabulary=vocabulary)
    rows = trainable_rows(groups, config.loss)
    _refuse_sizes(config, len(rows), accelerator.num_processes)
    output = run_dir / "output"
    if not output.is_dir():
        with Bars(show=progress and accelerator.is_main_process) as bars:
            key = f"{snapshot.hash} {digests.base}"
            run = Run(
                config,
                groups,
                rows,
                run_dir,
                accelerator,
                bars,
                base=base,
                base_name=snapshot.base,
                n=n,
                start=start,
                key=key,
            )
            run.learner.save(run.train(draws=draws), output, base_name=base_name)
        accelerator.free_memory()
        if accelerator.is_main_process:
            DrawBox(run_dir).remove()
    metrics = latest_metrics(run_dir)
    kind = VersionKind.ADAPTER if config.method == "lora" else VersionKind.FULL
    return TrainingResult(run_dir, output, kind, int(metrics["step"]), len(rows), metrics)


def _read(
    config: TrainSettings,
    snapshot: Snapshot,
    run_dir: Path,
    accelerator: "Accelerator",
    *,
    n: int,
    draws: bool,
    vocabulary: int,
) -> Groups:
    """Returns the snapshot's groups, and draws groups for prompts that the base has not drawn for."""
    groups = Groups.read(snapshot.groups_file, base=snapshot.base, vocabulary=vocabulary)
    wanted = np.flatnonzero(~groups.comparable & (groups.split != Split.TEST))
    rows = np.random.default_rng(config.seed).permutation(wanted)[: config.base_prompts]
    if not draws or not len(rows):
        return groups
    box = DrawBox(run_dir)
    if accelerator.is_main_process:
        asked = tuple(groups.numbers[np.sort(rows)].tolist())
        box.wait(DrawOrder(BASE_ORDER, "", VersionKind.BASE, asked, n, config.seed))
    accelerator.wait_for_everyone()
    return Groups.read(snapshot.groups_file, box.groups(BASE_ORDER), base=snapshot.base, vocabulary=vocabulary)


def _refuse_strangers(snapshot: Snapshot, base: Path, start: "Version | None") -> Digests:
    """Returns the digests of the base and of the start after checking that both belong to the snapshot."""
    if read_snapshot(snapshot.path).hash != snapshot.hash:
        raise UserError(f"{snapshot.path} does not hold the snapshot {snapshot.hash}; take a new one")
    digest = base_digest(base)
    # A registry that did not know the base left the digest empty. Only the logged log-probabilities can tell then.
    if snapshot.base_digest and not names_base(snapshot.base_digest, base, digest):
        raise UserError(
            f"the snapshot was sampled on a base with digest {snapshot.base_digest[:12]}, but {base} has "
            f"{digest[:12]}: train on the model that answered, its weights, configuration and tokenizer unchanged",
            param="model",
        )
    if start is None:
        return Digests(digest, digest)
    if snapshot.version != start.name:
        raise UserError(
            f"the snapshot was taken to start from {snapshot.version}, not from {start.name}; take a snapshot for it, "
            "or name the other version",
            param="version",
        )
    digest_of = base_digest if start.kind is VersionKind.BASE else lambda directory: make_manifest(directory).digest
    if digest_of(start.directory) != start.digest:
        raise UserError(
            f"the files of {start.name} in {start.directory} are not those that were registered; restore them"
        )
    return Digests(digest, start.digest)


def _refuse_sizes(config: TrainSettings, groups: int, processes: int) -> None:
    if groups < config.min_pairs:
        raise UserError(
            f"the snapshot has {groups} groups to train on, fewer than train.min_pairs = {config.min_pairs}: "
            "answer more requests first, or lower it",
            param="train.min_pairs",
        )
    if groups < config.batch_size:
        raise UserError(
            f"train.batch_size = {config.batch_size} is more than the snapshot's {groups} groups: lower it",
            param="train.batch_size",
        )
    if config.batch_size % (config.micro_batch_size * processes):
        raise UserError(
            f"train.batch_size = {config.batch_size} is not a multiple of train.micro_batch_size = "
            f"{config.micro_batch_size}" + (f" times {processes} processes" if processes > 1 else ""),
            param="train.micro_batch_size",
        )
