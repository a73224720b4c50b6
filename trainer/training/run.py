"""A training run in progress: its steps, its reports, its checkpoints."""

import math
import shutil
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from bonbon.errors import BonbonError
from bonbon.settings import TrainSettings
from bonbon.theory import best_of_n_kl
from trainer.bars import Bars
from trainer.data.batches import Batch, Partner, epoch_batches, make_batch, places
from trainer.data.groups import Groups, Rows
from trainer.training.checkpoint import Checkpoints, refuse_non_finite, trained_weights
from trainer.training.interpolation import Landing
from trainer.training.logprobs import Logprobs, sampler_gap
from trainer.training.loss import LossTerms, PairLogprobs, make_loss
from trainer.training.metrics import MetricsLog
from trainer.training.policy import save_policy
from trainer.training.schedule import count_steps, default_learning_rate, learning_rate_factor, step_seed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Run:
    """Every process of a distributed run makes one and calls the same methods; the main process writes the files.

    Args:
        policy: the reference policy, its trainable weights requiring gradients; see `load_policy`.
        groups: what to train on; at least `config.batch_size` of them.
        key: names snapshot and reference; cached reference log-probabilities are used under the same key only.

    Raises:
        UserError: the candidates' logged log-probabilities are not the policy's, so it did not sample them.
    """

    def __init__(
        self,
        config: TrainSettings,
        policy: "PreTrainedModel | PeftModel",
        groups: Groups,
        run_dir: Path,
        accelerator: Accelerator,
        *,
        key: str,
        progress: Bars,
    ) -> None:
        self.config, self.groups, self.run_dir, self.accelerator = config, groups, run_dir, accelerator
        self.progress = progress
        width = policy.config.get_text_config().hidden_size
        self.learning_rate = config.learning_rate or default_learning_rate(config.method, width)
        self.loss = make_loss(config.loss, alpha=config.alpha, dpo_beta=config.dpo_beta)
        # The target of the paper's losses is that of best and worst.
        self.partner: Partner = "random" if config.loss == "bonbon" else "worst"
        self.checkpoints = Checkpoints(run_dir / "checkpoints", config.keep_checkpoints, accelerator)
        self.steps_per_epoch = len(groups.train) // config.batch_size
        self.steps = count_steps(config, len(groups.train))
        self.step = 0
        self._epoch: tuple[int, list[Rows]] = (-1, [])
        parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=config.weight_decay)
        self.landing = self._landing(policy)
        self.model, self.optimiser = accelerator.prepare(policy, optimiser)
        self.logprobs = Logprobs(self.model, groups, accelerator, config.micro_batch_size, progress)
        self.reference = self.logprobs.reference(run_dir / "reference.safetensors", key)
        self.sampler_gap = sampler_gap(self.reference, groups, config.max_sampler_gap)

    def train(self) -> None:
        """All steps that are left after the last checkpoint.

        Raises:
            BonbonError: the loss, a gradient or a weight is not finite.
        """
        if latest := self.checkpoints.latest():
            self.checkpoints.load(latest, self.model, self.optimiser.optimizer)
            self.step = latest
        with (
            MetricsLog(self.run_dir, resume=self.step, enabled=self.accelerator.is_main_process) as log,
            self.progress.task("training", self.steps, done=self.step) as bar,
        ):
            if self.step == 0:
                log.write(0, 0, sampler_gap=self.sampler_gap, **self._held_out(self.reference))
            while self.step < self.steps:
                metrics = self._train_step()
                self.step += 1
                epoch = self.step / self.steps_per_epoch
                log.write(self.step, epoch, **metrics)
                bar(self.step, f"loss {metrics['loss']:.3f}  margin {metrics['margin']:.2f}/{metrics['target']:.2f}")
                if self.step % self.steps_per_epoch == 0 or self.step == self.steps:
                    log.write(self.step, epoch, **self._held_out())
                if self.step % self.config.checkpoint_every == 0:
                    self.checkpoints.save(self.step, self.model, self.optimiser.optimizer)
            self._land(log)

    def save(self, output: Path, *, base: Path, base_name: str) -> None:
        """Write the trained version to `output`, which appears when it is whole.

        Raises:
            BonbonError: a weight is not finite; nothing is written.
        """
        weights = trained_weights(self.model)
        if self.accelerator.is_main_process:
            refuse_non_finite(weights)
            partial = output.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            save_policy(
                self.accelerator.unwrap_model(self.model), partial, base=base, base_name=base_name, weights=weights
            )
            partial.rename(output)
        self.accelerator.wait_for_everyone()

    def _landing(self, policy: "PreTrainedModel | PeftModel") -> Landing | None:
        """None where alpha is a number, or another loss is asked for what it does by itself."""
        config = self.config
        # Drawing from weights that are spread over processes would take longer than training them.
        if config.loss != "bonbon" or config.alpha != "auto" or config.sharding == "full":
            return None
        size = 2 * config.micro_batch_size
        return Landing(policy, self.groups, size=size, seed=config.seed, progress=self.progress)

    def _land(self, log: MetricsLog) -> None:
        """Every process draws the same, so that all of them end with the same weights."""
        if self.landing is None:
            return
        kl = self.config.kl or float(np.mean([best_of_n_kl(int(n)) for n in self.groups.n[self.groups.train]]))
        if landed := self.landing(kl):
            log.write(self.step, self.step / self.steps_per_epoch, landing_share=landed.share, landing_kl=landed.kl)

    def _train_step(self) -> dict[str, float]:
        """One optimiser step. Its random numbers depend on seed, step and process only, so that it can be repeated."""
        start = perf_counter()
        rate = self.learning_rate * learning_rate_factor(self.step, self.steps, self.config.warmup_fraction)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(step_seed(self.config.seed, self.step, self.accelerator.process_index))
        self.model.train()
        terms, tokens = [], 0
        norm = torch.zeros(())
        for rows in self._micro_batches():
            with self.accelerator.accumulate(self.model):
                chosen = places(self.groups, rows, self.partner, seed=self.config.seed, step=self.step)
                batch = make_batch(self.groups, rows, chosen).to(self.accelerator.device)
                term = self.loss(self._pair_logprobs(batch))
                self.accelerator.backward(term.loss)
                terms.append(torch.stack([value.detach().float() for value in term]))
                tokens += int(batch.attention_mask.sum())
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
                    means = self.accelerator.reduce(torch.stack(terms).mean(0), "mean").tolist()
                    self._refuse_divergence(loss=means[0], gradient_norm=float(norm))
                self.optimiser.step()
                self.optimiser.zero_grad()
        seconds = perf_counter() - start
        return {
            **dict(zip(LossTerms._fields, means, strict=True)),
            "gradient_norm": float(norm),
            "learning_rate": rate,
            "tokens_per_second": tokens * self.accelerator.num_processes / seconds,
        }

    def _refuse_divergence(self, **values: float) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                latest = self.checkpoints.latest()
                kept = "there is no checkpoint yet" if latest is None else f"the checkpoint of step {latest} is kept"
                raise BonbonError(
                    f"step {self.step + 1}: {name.replace('_', ' ')} is {value}, the run stops ({kept}); lower "
                    f"train.learning_rate = {self.learning_rate:g} and start a new run"
                )

    def _micro_batches(self) -> list[Rows]:
        """This process's share of the step's pairs."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            batches = epoch_batches(
                self.groups.train, self.groups.lengths, self.config.batch_size, seed=self.config.seed, epoch=epoch
            )
            self._epoch = epoch, batches
        rows = self._epoch[1][position]
        micro = np.split(rows, len(rows) // self.config.micro_batch_size)
        return micro[self.accelerator.process_index :: self.accelerator.num_processes]

    def _pair_logprobs(self, batch: Batch) -> PairLogprobs:
        chosen, rejected = self.logprobs.of_batch(batch).chunk(2)
        return self._beside_reference(chosen, rejected, batch.rows.cpu().numpy(), batch.places.cpu().numpy())

    def _beside_reference(self, chosen: Tensor, rejected: Tensor, rows: Rows, places: Rows) -> PairLogprobs:
        groups, flat = self.groups, self.groups.starts[rows, None] + places
        known = (
            *self.reference[torch.from_numpy(flat)].T,
            *map(
                torch.from_numpy, (groups.n[rows], *groups.ranks[flat].T, groups.ranked[flat[:, 0]], groups.below[rows])
            ),
        )
        return PairLogprobs(chosen, rejected, *(value.to(chosen.device) for value in known))

    def _held_out(self, logprobs: Tensor | None = None) -> dict[str, float]:
        """The loss's terms on held-out groups, empty when there are none; always on the same pairs."""
        rows = self.groups.held_out
        if not len(rows):
            return {}
        if logprobs is None:
            logprobs = self.logprobs.of_candidates(rows, "held-out groups", transient=True)
        chosen = places(self.groups, rows, self.partner, seed=self.config.seed, step=0)
        pair = logprobs[torch.from_numpy(self.groups.starts[rows, None] + chosen)]
        terms = self.loss(self._beside_reference(pair[:, 0], pair[:, 1], rows, chosen))
        return {f"held_out_{name}": float(value) for name, value in zip(LossTerms._fields, terms, strict=True)}
