"""Computes log-probabilities of groups' candidates under the current policy, distributed over the processes of a
run."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import structlog
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bonbon.engines.text.context_length import refuse_long_texts
from bonbon.engines.text.model_config import keeps_state
from bonbon.progress import Bars
from trainer.data.batches import Batch, by_length, make_batch
from trainer.data.groups import Groups, Rows

log = structlog.get_logger(__name__)

SHARING_TOLERANCE = {"bf16": 0.02, "no": 0.001}
"""Largest difference in nats per token, by arithmetic precision, for candidates that share their prompt's sequence.

The difference is larger for a model that does not support custom attention masks.
"""
LONGEST_SHARED = 8192
"""Longest sequence in tokens that several candidates share. Attention over a longer one would cost too much."""


def candidate_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the log-probability of each candidate, in nats, summed over its tokens at its sampling temperature.

    Returns:
        A 32-bit tensor, [candidates], whatever precision the model computes in.
    """
    logits = model(**batch.inputs()).logits
    chosen = logits.reshape(-1, logits.shape[-1])[batch.predictors].float()
    chosen = chosen / batch.temperatures[batch.owners, None]
    tokens = chosen.gather(-1, batch.targets[:, None])[:, 0] - chosen.logsumexp(-1)
    summed: Tensor = tokens.new_zeros(len(batch.candidates)).index_add(0, batch.owners, tokens)
    return summed


class _Sizes(NamedTuple):
    """Token counts of a prompt with the longest of some of its candidates, and with all of them."""

    text: int
    sequence: int

    @classmethod
    def of(cls, groups: Groups, candidates: Rows) -> Self:
        prompt, tokens = int(groups.prompts.lengths[groups.owners[candidates[0]]]), groups.tokens[candidates]
        return cls(prompt + int(tokens.max()), prompt + int(tokens.sum()))


class Logprobs:
    """Computes log-probabilities of whole groups, `size` groups per forward pass.

    Candidates of a group share their prompt's sequence when the model gives the same log-probabilities that way, so
    that the prompt is not read once per candidate.

    Args:
        model: A causal language model, as prepared by the accelerator.
        size: Groups per forward pass of each process.
        longest: The most tokens of a prompt with its candidate, if a longer text would change the log-probabilities of
            others in its batch; see `bonbon.engines.text.context_length.rotary_limit`.
    """

    def __init__(
        self, model: nn.Module, accelerator: Accelerator, size: int, progress: Bars, *, longest: int | None = None
    ) -> None:
        self.model, self.accelerator, self.size, self.progress = model, accelerator, size, progress
        self.longest = longest
        self._longest_text = 0

    @property
    def shares_prompts(self) -> bool:
        """Whether candidates share their prompt's sequence, up to the length that was tried."""
        return self._longest_text > 0

    @torch.no_grad()
    def try_sharing_prompts(self, groups: Groups) -> None:
        """Shares prompts from now on, up to the lengths tried here, if that does not change the log-probabilities.

        The longest texts are tried, because only they reveal a model whose attention is limited by distance as well as
        by its mask. A model with a recurrent state is not tried: its candidates would follow each other in that state.
        Every process must call it.

        Raises:
            UserError: A text exceeds the limit of the model's rotary position embedding.
        """
        sizes = [_Sizes.of(groups, groups.candidates_of(row)) for row in range(len(groups))]
        self._refuse_long(sizes)
        if keeps_state(self.accelerator.unwrap_model(self.model).config):
            log.info("the model reads a prompt again for each of its candidates", reason="it keeps a state")
            return
        rows = [row for row, size in enumerate(sizes) if size.sequence <= LONGEST_SHARED]
        if not rows:
            return
        tried = {max(rows, key=lambda row: sizes[row].text), max(rows, key=lambda row: sizes[row].sequence)}
        chosen = [groups.candidates_of(row) for row in sorted(tried)]
        self.model.eval()
        separate = self._of(groups, chosen, share_prompts=False)
        try:
            shared = self._of(groups, chosen, share_prompts=True)
        except Exception as error:  # noqa: BLE001 - the model's own code, which raises whatever it likes
            log.info("the model reads a prompt again for each of its candidates", reason=str(error))
            return
        gap = float((separate - shared).abs().sum() / groups.tokens[np.concatenate(chosen)].sum())
        if gap < SHARING_TOLERANCE[self.accelerator.mixed_precision]:
            self._longest_text = max(sizes[row].text for row in rows)
        else:
            log.info("the model reads a prompt again for each of its candidates", gap_per_token=gap)

    def batches(self, groups: Groups, chosen: Sequence[Rows]) -> list[Batch]:
        """Returns forward passes that cover `chosen`, which are candidates of several groups, the longest first.

        Raises:
            UserError: A text exceeds the limit of the model's rotary position embedding.
        """
        sizes = [_Sizes.of(groups, some) for some in chosen]
        self._refuse_long(sizes)
        return [
            make_batch(
                groups,
                [chosen[place] for place in places],
                share_prompts=all(
                    sizes[place].text <= self._longest_text and sizes[place].sequence <= LONGEST_SHARED
                    for place in places
                ),
            )
            for places in by_length(np.array([size.sequence for size in sizes]), self.size)
        ]

    def _refuse_long(self, sizes: Sequence[_Sizes]) -> None:
        remedy = "delete these groups (bonbon pairs purge)"
        refuse_long_texts([size.text for size in sizes], self.longest, "groups", remedy)

    def _of(self, groups: Groups, chosen: Sequence[Rows], *, share_prompts: bool) -> Tensor:
        batch = make_batch(groups, chosen, share_prompts=share_prompts)
        return candidate_logprobs(self.model, batch.to(self.accelerator.device))

    @torch.no_grad()
    def of(self, groups: Groups, rows: Rows, title: str, *, transient: bool = False) -> Tensor:
        """Returns log-probabilities under the current policy, [candidates of all groups], zero outside `rows`."""
        self.model.eval()
        device = self.accelerator.device
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        batches = self.batches(groups, [groups.candidates_of(row) for row in rows])
        result = torch.zeros(len(groups.owners), device=device)
        with self.progress.task(title, len(rows), transient=transient) as bar:
            for start in range(0, len(batches), processes):
                # Sharded models need all processes in every forward pass, so a process without a batch repeats its last
                # one.
                batch = batches[min(start + mine, len(batches) - 1)].to(device)
                logprobs = candidate_logprobs(self.model, batch)
                if start + mine < len(batches):
                    result[batch.candidates] = logprobs
                bar(min(len(rows), (start + processes) * self.size))
        reduced: Tensor = self.accelerator.reduce(result, "sum")
        return reduced.cpu()
