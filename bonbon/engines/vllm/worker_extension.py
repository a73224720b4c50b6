"""Runs in vLLM's worker process: reports log-probabilities before top_p and top_k, clears what a broken version leaves
in the cache, and ends with the service.

vLLM reports log-probabilities either of the model's own logits (`raw_logprobs`), or of the distribution after
temperature, top_k and top_p (`processed_logprobs`). An engine reports them after the temperature and before the limits.
Without limits, these are the processed ones; with limits, this module provides them.
"""

import os
import select
import signal
import threading
from typing import Any

import psutil
import torch
from torch import Tensor


class WorkerExtension:
    """Mixed into vLLM's worker class by the argument `worker_extension_cls`."""

    model_runner: Any

    def end_with(self, service: int) -> None:
        """Makes vLLM's processes on this machine end when process `service` does, however that ends."""
        above = [process.pid for process in psutil.Process().parents()]
        if service in above:  # False for a worker on another machine.
            watched = os.pidfd_open(service)
            ours = [os.getpid(), *above[: above.index(service)]]
            threading.Thread(target=_end_with, args=(watched, ours), name="end-with-service", daemon=True).start()

    def report_untruncated_logprobs(self) -> None:
        """Makes the sampler report log-probabilities before top_p and top_k. Called once, before any request."""
        sampler = self.model_runner.sampler
        if hasattr(sampler, "topk_topp_sampler"):
            sampler.topk_topp_sampler = BeforeLimits(sampler.topk_topp_sampler)
        else:  # vLLM's model runner V2
            sampler._sample_random = before_limits(sampler._sample_random)

    def clear_nonfinite_cache(self) -> None:
        """Replaces what is not finite in the key-value cache by numbers that are.

        Attention multiplies the unused slots of a block by zero on some platforms, such as CPUs, and zero times NaN is
        NaN: what a version with overflowing activations left in a block would break the next request that gets it.
        """
        caches = list(self.model_runner.kv_caches)
        while caches:
            cache = caches.pop()
            if not isinstance(cache, Tensor):  # A layer may have several.
                caches.extend(cache)
            elif cache.dtype in (torch.float32, torch.bfloat16, torch.float16):
                torch.nan_to_num_(cache)


def _end_with(watched: int, ours: list[int]) -> None:
    """Waits for a process to end, then kills the processes in between, this one last."""
    select.select([watched], [], [])
    for process in reversed(ours):
        os.kill(process, signal.SIGKILL)


class BeforeLimits(torch.nn.Module):
    """vLLM's TopKTopPSampler, except for the log-probabilities that it returns.

    Args:
        sampler: Applies top_k and top_p, and samples.
    """

    def __init__(self, sampler: torch.nn.Module) -> None:
        super().__init__()
        self.sampler = sampler

    def forward(
        self, logits: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns tokens (rows,) and log-probabilities (rows, vocabulary) of logits (rows, vocabulary) after
        temperature."""
        if k is None and p is None:
            tokens, logprobs = self.sampler(logits, generators, k, p)
            return tokens, logprobs
        whole = logits.log_softmax(
            dim=-1, dtype=torch.float32
        )  # Computed first, because the limits are applied in place.
        tokens, _ = self.sampler(logits, generators, k, p)
        return tokens, whole


def before_limits(sample: Any) -> Any:
    """Does the same for `Sampler._sample_random` of model runner V2, which returns logits."""

    def sample_and_keep(
        logits: Tensor, indices: Tensor, indices_np: Any, positions: Tensor, k: Any, p: Any, fused: bool
    ) -> tuple[Tensor, Tensor]:
        whole = logits if k is None and p is None else logits.clone()
        tokens, _ = sample(logits, indices, indices_np, positions, k, p, fused)
        return tokens, whole

    return sample_and_keep
