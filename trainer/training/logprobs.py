"""Log-probabilities of a snapshot's candidates under the policy as it is, and under the reference, taken once."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bonbon.errors import UserError
from trainer.bars import Bars
from trainer.data.batches import Batch, length_batches, padded
from trainer.data.groups import Groups, Rows
from trainer.training.policy import sequence_logprobs

STRANGE_SHARE = 0.01


class Logprobs:
    """Takes them, `size` sequences in a forward pass (pairs: `size` of them), shared among the processes of a run."""

    def __init__(self, model: nn.Module, groups: Groups, accelerator: Accelerator, size: int, progress: Bars) -> None:
        self.model, self.groups, self.accelerator, self.size, self.progress = model, groups, accelerator, size, progress

    def of_batch(self, batch: Batch) -> Tensor:
        """Of every chosen, then every rejected completion, [2 * pairs]; one forward pass."""
        return sequence_logprobs(
            self.model, batch.input_ids, batch.attention_mask, batch.prompt_lengths, batch.temperatures
        )

    @torch.no_grad()
    def of_candidates(self, rows: Rows, title: str, *, transient: bool = False) -> Tensor:
        """Of all candidates of `rows` under the policy as it is, [candidates of the snapshot]; zero for other rows."""
        self.model.eval()
        groups, device = self.groups, self.accelerator.device
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        batches = length_batches(groups.candidates_of(rows), groups.sequence_lengths, 2 * self.size)
        result = torch.zeros(len(groups.owners), device=device)
        with self.progress.task(title, sum(map(len, batches)), transient=transient) as bar:
            for start in range(0, len(batches), processes):
                # Sharded models need all processes in every forward pass: who has no batch left repeats the last.
                some = batches[min(start + mine, len(batches) - 1)]
                logprobs = self._of_flat(some)
                if start + mine < len(batches):
                    result[torch.from_numpy(some).to(device)] = logprobs
                bar(sum(map(len, batches[: start + processes])))
        reduced: Tensor = self.accelerator.reduce(result, "sum")
        return reduced.cpu()

    def _of_flat(self, candidates: Rows) -> Tensor:
        groups, device = self.groups, self.accelerator.device
        rows = groups.owners[candidates]
        places = candidates - groups.starts[rows]
        input_ids, mask = padded([groups.sequence(row, place) for row, place in zip(rows, places, strict=True)])
        lengths, temperatures = map(torch.from_numpy, (groups.prompt_lengths[rows], groups.temperatures[rows]))
        return sequence_logprobs(self.model, *(part.to(device) for part in (input_ids, mask, lengths, temperatures)))

    def reference(self, path: Path, key: str) -> Tensor:
        """Of all candidates, [candidates], before the policy's first step: until then it is the reference.

        They are kept in `path` and read from there when it was written under the same key.
        """
        if path.exists():
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    kept: Tensor = file.get_tensor("logprobs")
                    return kept
        logprobs = self.of_candidates(np.arange(len(self.groups)), "reference log-probabilities")
        if self.accelerator.is_main_process:
            partial = path.with_suffix(".partial")
            save_file({"logprobs": logprobs}, partial, metadata={"key": key})
            partial.replace(path)
        return logprobs


def sampler_gap(reference: Tensor, groups: Groups, limit: float) -> float:
    """Mean difference between logged and reference log-probabilities, in nats per token.

    Raises:
        UserError: more than 1 % of candidates differ by more than `limit`.
    """
    gaps = np.abs(reference.double().numpy() - groups.logprobs) / np.maximum(groups.tokens, 1)
    strange = gaps > limit
    if strange.mean() > STRANGE_SHARE:
        raise UserError(
            f"{int(strange.sum())} of {strange.size} candidates were logged with log-probabilities more than "
            f"train.max_sampler_gap = {limit:g} nats per token away from the reference's (mean {gaps.mean():.3f}): the "
            "reference did not sample them, or the engine computes otherwise than the trainer; train on the version "
            "that answered, or raise train.max_sampler_gap if you know why",
            param="train.max_sampler_gap",
        )
    return float(gaps.mean())
