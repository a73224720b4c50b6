"""Log-probabilities of a snapshot's pairs: under the policy as it is, and under the reference, which are taken once."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bonbon.errors import UserError
from trainer.pairs import Batch, Pairs, Rows, length_batches
from trainer.policy import sequence_logprobs
from trainer.progress import Bars

STRANGE_SHARE = 0.01


class Logprobs:
    """Takes them in batches of `size` pairs, shared among the processes of a run."""

    def __init__(self, model: nn.Module, pairs: Pairs, accelerator: Accelerator, size: int, progress: Bars) -> None:
        self.model, self.pairs, self.accelerator, self.size, self.progress = model, pairs, accelerator, size, progress

    def of_batch(self, batch: Batch) -> Tensor:
        """Of every chosen, then every rejected completion, [2 * pairs]; one forward pass."""
        return sequence_logprobs(
            self.model, batch.input_ids, batch.attention_mask, batch.prompt_lengths, batch.temperatures
        )

    @torch.no_grad()
    def of_rows(self, rows: Rows, title: str, *, transient: bool = False) -> Tensor:
        """Of chosen and rejected under the policy as it is, [pairs of the snapshot, 2]; zero where not in `rows`."""
        self.model.eval()
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        batches = length_batches(rows, self.pairs.lengths, self.size)
        result = torch.zeros(len(self.pairs), 2, device=self.accelerator.device)
        with self.progress.task(title, len(rows), transient=transient) as bar:
            for start in range(0, len(batches), processes):
                # Sharded models need all processes in every forward pass: who has no batch left repeats the last.
                batch = self.pairs.batch(batches[min(start + mine, len(batches) - 1)]).to(self.accelerator.device)
                logprobs = torch.stack(self.of_batch(batch).chunk(2), dim=1)
                if start + mine < len(batches):
                    result[batch.rows] = logprobs
                bar(sum(map(len, batches[: start + processes])))
        reduced: Tensor = self.accelerator.reduce(result, "sum")
        return reduced.cpu()

    def reference(self, path: Path, key: str) -> Tensor:
        """Of all pairs, [pairs, 2], before the policy's first step: until then it is the reference.

        They are kept in `path` and read from there when it was written under the same key.
        """
        if path.exists():
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    kept: Tensor = file.get_tensor("logprobs")
                    return kept
        logprobs = self.of_rows(np.arange(len(self.pairs)), "reference log-probabilities")
        if self.accelerator.is_main_process:
            partial = path.with_suffix(".partial")
            save_file({"logprobs": logprobs}, partial, metadata={"key": key})
            partial.replace(path)
        return logprobs


def sampler_gap(reference: Tensor, pairs: Pairs, limit: float) -> float:
    """Mean difference between logged and reference log-probabilities, in nats per token.

    Raises:
        UserError: more than 1 % of pairs differ by more than `limit`.
    """
    tokens: NDArray[np.int64] = np.maximum(pairs.tokens, 1)
    gaps = np.abs(reference.double().numpy() - pairs.logprobs) / tokens
    strange = (gaps > limit).any(axis=1)
    if strange.mean() > STRANGE_SHARE:
        raise UserError(
            f"{int(strange.sum())} of {strange.size} pairs were logged with log-probabilities more than "
            f"train.max_sampler_gap = {limit:g} nats per token away from the reference's (mean {gaps.mean():.3f}): the "
            "reference did not sample them, or the engine computes otherwise than the trainer; train on the version "
            "that answered, or raise train.max_sampler_gap if you know why",
            param="train.max_sampler_gap",
        )
    return float(gaps.mean())
