"""Turns vLLM's outputs into deltas."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bonbon.engines.candidate_stream import CandidateStream, Top
from bonbon.engines.engine import Delta, DrawRequest
from bonbon.errors import EngineError

if TYPE_CHECKING:
    from bonbon.engines.text.prompt_reader import PromptReader


def read_prompt(output: Any, token_ids: Sequence[int], wanted: int) -> tuple[list[float], list[Top]]:
    """Returns the log-probability of each token of a prompt but the first, and the `wanted` most likely tokens there.

    Raises EngineError when vLLM's `RequestOutput` lacks them.
    """
    found = output.prompt_logprobs
    if found is None or len(found) != len(token_ids):
        raise EngineError("vLLM reported no log-probabilities of the prompt")
    logprobs, tops = [], []
    for token, position in zip(token_ids[1:], found[1:], strict=True):
        distribution = {token_id: entry.logprob for token_id, entry in position.items()}
        likeliest = sorted(distribution, key=lambda token_id: -distribution[token_id])[:wanted]
        logprobs.append(distribution[token])
        tops.append((likeliest, [distribution[token_id] for token_id in likeliest]))
    return logprobs, tops


class NonFiniteLogprobError(EngineError):
    """A version gave a token a log-probability that is no finite number."""


class Reading:
    """The candidates of one request, read from vLLM's outputs.

    At temperature 0, vLLM samples one candidate, which stands for all of them.

    Args:
        request: The request.
        prompt: The prompt's token ids.
        reader: The reader that read the prompt.
    """

    def __init__(self, request: DrawRequest, prompt: Sequence[int], reader: "PromptReader") -> None:
        greedy = request.sampling.temperature == 0
        self._copies = request.n if greedy else 1
        self._candidates = [
            CandidateStream(request, index, prompt, reader) for index in range(1 if greedy else request.n)
        ]
        self._version = request.version
        self._top = request.sampling.top_logprobs

    @property
    def finished(self) -> bool:
        """Returns whether every candidate is complete."""
        return all(candidate.finished for candidate in self._candidates)

    def read(self, output: Any) -> Iterator[Delta]:
        """Yields the deltas of one of vLLM's `RequestOutput`s.

        Raises:
            NonFiniteLogprobError: A token's log-probability is not finite.
            EngineError: vLLM ended a candidate early.
        """
        for piece in output.outputs:
            for delta in self._read(piece):
                yield from (replace(delta, index=delta.index + copy) for copy in range(self._copies))

    def _read(self, piece: Any) -> Iterator[Delta]:
        candidate = self._candidates[piece.index]
        for at, token in enumerate(piece.token_ids):
            if candidate.finished:  # It ended at a stop string that vLLM has not processed yet.
                return
            logprob, top = self._distribution(piece.logprobs, at, token)
            if delta := candidate.add(token, logprob, top):
                yield delta
        if piece.finish_reason is None or candidate.finished:
            return
        if piece.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM ended a candidate early ({piece.finish_reason}); its output has the cause")
        yield candidate.finish(piece.finish_reason)

    def _distribution(self, logprobs: Any, at: int, token: int) -> tuple[float, Top]:
        """Returns the log-probability of the sampled token, and the most likely tokens."""
        start, end = logprobs.start_indices[at], logprobs.end_indices[at]
        distribution = dict(zip(logprobs.token_ids[start:end], logprobs.logprobs[start:end], strict=True))
        if not math.isfinite(distribution[token]):
            raise NonFiniteLogprobError(
                f"version {self._version} gave a token the log-probability {distribution[token]}, which is not finite"
            )
        likeliest = sorted(distribution, key=lambda token: -distribution[token])[: self._top]
        return distribution[token], (likeliest, [distribution[token] for token in likeliest])
