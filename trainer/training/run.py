"""Runs the stages of a training, from the starting weights to the weights that are kept."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bonbon.engines.embedded.policy import load_model
from bonbon.engines.engine import VersionKind
from bonbon.progress import Bars
from bonbon.settings import TrainSettings
from bonbon.theory import best_of_n_kl, tilt
from trainer.data.groups import Groups, Rows
from trainer.training.checkpoint import Checkpoints
from trainer.training.learning.learner import Learner, Weights
from trainer.training.learning.loss import Loss, make_loss
from trainer.training.learning.policy import load_policy
from trainer.training.metrics import MetricsLog
from trainer.training.sampler_check import check_sampler, checked_rows
from trainer.training.stages import offline
from trainer.training.stages.draws import DrawBox
from trainer.training.stages.interpolation import interpolate
from trainer.training.stages.offline import Offline
from trainer.training.stages.refinement import Refinement, tilt_at_limit, too_few_tokens
from trainer.training.stages.validation import Drawer, draws_per_prompt, validation_rows

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from bonbon.registry.version_records import Version

logger = structlog.get_logger(__name__)

REFINED = 0.3
"""Learning rate at the beginning of the refinement relative to the offline stage's. It is lower because fresh draws are
fewer and noisier.
"""
NOISE = 0.001
"""KL per token that 16-bit arithmetic adds between two computations of one policy, for each of the two that uses it."""


class Run:
    """One training run. Every process of a distributed run creates one and calls the same methods; the main process
    writes.

    Args:
        groups: The snapshot's groups; `rows` are those to train on.
        base: Directory of the base, which is the reference policy; `base_name` is its name in the groups.
        n: The n of the best-of-n that is imitated.
        start: The version that training starts from; None or a base version for the base.
        key: Identifies snapshot and base. Cached log-probabilities under the base are used only with the same key.

    Raises:
        UserError: The groups were not drawn from the policies that they name.
    """

    def __init__(
        self,
        config: TrainSettings,
        groups: Groups,
        rows: Rows,
        run_dir: Path,
        accelerator: Accelerator,
        bars: Bars,
        *,
        base: Path,
        base_name: str,
        n: int,
        start: "Version | None",
        key: str,
    ) -> None:
        self.config, self.groups, self.run_dir, self.bars = config, groups, run_dir, bars
        self.n, self.tilt, self.max_kl = n, tilt(n), config.kl or best_of_n_kl(n)
        if start is not None and start.kind is VersionKind.BASE:
            start = None
        self.validation = validation_rows(groups, config.seed)
        self.draws_for_validation = draws_per_prompt(config, self.validation)
        bf16 = accelerator.mixed_precision == "bf16"
        policy = load_policy(
            base, start.files if start else None, config, dtype=torch.bfloat16 if bf16 else torch.float32
        )
        self.learner = Learner(
            config,
            policy,
            accelerator,
            base=base,
            base_weights=_base_weights(config, policy, base, start),
            loss=self._loss(self.tilt, config.sft_weight),
            progress=bars,
        )
        self.learner.logprobs.try_sharing_prompts(groups)
        self.base_name = base_name
        self.continues = start is not None
        self.reference = self._reference(run_dir / "reference.safetensors", key)
        self.noise = NOISE * (2 if bf16 else 1)
        self.sampler_gap = self._checked(start, self.noise)
        self.offline = Offline(
            self.learner,
            self.learner.weights(),
            groups,
            rows,
            self.validation,
            self.reference,
            config=config,
            tilt=self.tilt,
            run_dir=run_dir,
            progress=bars,
        )

    def train(self, *, draws: bool) -> Weights:
        """Returns the weights at the end of the last stage, as they are stored.

        Raises:
            BonbonError: The loss, the gradient or a weight is not finite, or drawing failed; the progress is kept.
        """
        draws = draws and len(self.validation) > 0
        main = self.learner.accelerator.is_main_process
        done = self.offline.checkpoints.latest() or 0
        refined = Checkpoints(self.run_dir / "checkpoints" / "refinement", 1, self.learner.accelerator).latest() or 0
        refines = draws and self.config.refine != "off"
        if refines and not refined and (problem := too_few_tokens(self.config, self.groups, self.validation)):
            refines = False
            if main:
                logger.warning("the policy does not learn from its own draws", reason=problem)
        with MetricsLog(self.run_dir, resume=done + refined, enabled=main) as metrics:
            if not done:
                metrics.write(0, 0, stage=offline.STAGE, sampler_gap=self.sampler_gap)
            weights = self.offline.run(metrics)
            if draws:
                return self._improved_on_draws(weights, metrics, refines=refines)
            return self.learner.interpolated(weights, 1.0)

    def _improved_on_draws(self, weights: Weights, metrics: MetricsLog, *, refines: bool) -> Weights:
        """Interpolates by what the policy's draws gain, and then refines the policy on its own draws."""
        config, learner = self.config, self.learner
        drawer = Drawer(
            learner,
            self.groups,
            DrawBox(self.run_dir),
            base=self.base_name,
            seed=config.seed,
            max_gap=config.max_sampler_gap,
            noise=self.noise,
        )
        found = interpolate(
            learner,
            drawer,
            weights,
            self.validation,
            draws=self.draws_for_validation,
            tilt=self.tilt,
            max_kl=self.max_kl,
            run_dir=self.run_dir,
            progress=self.bars,
        )
        weights = learner.interpolated(weights, found.share)
        steps = self.offline.checkpoints.latest() or 0
        epochs = steps / self.offline.steps_per_epoch
        metrics.write(steps, epochs, **{f"interpolation_{name}": value for name, value in asdict(found).items()})
        if not refines:
            return weights
        limit_tilt = tilt_at_limit(self.max_kl, self.n)
        refinement = Refinement(
            learner,
            drawer,
            weights,
            self.groups,
            self.validation,
            draws=self.draws_for_validation,
            config=config,
            loss=self._loss(limit_tilt, sft_weight=0.0),
            rate=config.refine_learning_rate or REFINED * self._offline_rate(),
            tilt=self.tilt,
            limit_tilt=limit_tilt,
            max_kl=self.max_kl,
            offset=steps,
            epochs=epochs,
            run_dir=self.run_dir,
            progress=self.bars,
        )
        return learner.interpolated(refinement.run(metrics), 1.0)

    def _offline_rate(self) -> float:
        """Returns the learning rate of the offline stage.

        A version has learnt from logged groups already. The probe then chooses one of the lowest rates, which says
        nothing about the policy's own draws, so that a run that starts from a version takes at least the usual rate.
        """
        rate = self.offline.rate()
        return max(rate, self.offline.usual_rate) if self.continues else rate

    def _loss(self, tilt: float, sft_weight: float) -> Loss:
        config = self.config
        return make_loss(
            config.loss, n=self.n, tilt=tilt, sft_weight=sft_weight, alpha=config.alpha, dpo_beta=config.dpo_beta
        )

    def _reference(self, path: Path, key: str) -> Tensor:
        """Returns the log-probabilities of all candidates under the base, cached in `path` under `key`."""
        if path.exists():
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    kept: Tensor = file.get_tensor("logprobs")
                    return kept
        logprobs = self.learner.of_base(self.groups, np.arange(len(self.groups)), "log-probabilities under the base")
        if self.learner.accelerator.is_main_process:
            partial = path.with_suffix(".partial")
            save_file({"logprobs": logprobs}, partial, metadata={"key": key})
            partial.replace(path)
        return logprobs

    def _checked(self, start: "Version | None", noise: float) -> float:
        """Checks the base's groups against the base, and the other groups against the version they were drawn from."""
        limit, groups = self.config.max_sampler_gap, self.groups
        gap = check_sampler(
            groups, checked_rows(groups, by_base=True), self.reference, limit=limit, noise=noise, name=self.base_name
        )
        rows = checked_rows(groups, by_base=False)
        if start is not None and len(rows):
            policy = self.learner.of_policy(groups, rows, f"log-probabilities under {start.name}", transient=True)
            gap = max(gap, check_sampler(groups, rows, policy, limit=limit, noise=noise, name=start.name))
        return gap


def _base_weights(
    config: TrainSettings, policy: "PreTrainedModel | PeftModel", base: Path, start: "Version | None"
) -> Weights | None:
    """Returns the base's values of the weights that are trained; None for an adapter."""
    if config.method == "lora":
        return None
    if start is not None:
        policy = load_model(base, torch.device("cpu"), torch.float32)
    return {name: weight.detach().clone() for name, weight in policy.state_dict().items()}
