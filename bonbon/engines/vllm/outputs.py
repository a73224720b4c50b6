"""What comes from vLLM, as deltas."""

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
    """The log-probabilities of a prompt's tokens but the first, and the `wanted` likeliest tokens in their places.

    Raises EngineError when one of vLLM's `RequestOutput`s lacks them.
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


class Reading:
    """The candidates of one request, read from vLLM's outputs.

    At temperature 0 vLLM draws one candidate, which is all of them.

    Args:
        request: what is drawn.
        prompt: the prompt's token ids.
        reader: what read the prompt.
    """

    def __init__(self, request: DrawRequest, prompt: Sequence[int], reader: "PromptReader") -> None:
        greedy = request.sampling.temperature == 0
        self._copies = request.n if greedy else 1
        self._drawn = [CandidateStream(request, index, prompt, reader) for index in range(1 if greedy else request.n)]
        self._version = request.version
        self._top = request.sampling.top_logprobs

    @property
    def finished(self) -> bool:
        """Whether every candidate is whole."""
        return all(drawn.finished for drawn in self._drawn)

    def read(self, output: Any) -> Iterator[Delta]:
        """The deltas of one of vLLM's `RequestOutput`s. Raises EngineError when vLLM cut a candidate off."""
        for piece in output.outputs:
            for delta in self._read(piece):
                yield from (replace(delta, index=delta.index + copy) for copy in range(self._copies))

    def _read(self, piece: Any) -> Iterator[Delta]:
        drawn = self._drawn[piece.index]
        for at, token in enumerate(piece.token_ids):
            if drawn.finished:  # a stop string that vLLM is about to see, too
                return
            logprob, top = self._distribution(piece.logprobs, at, token)
            if delta := drawn.add(token, logprob, top):
                yield delta
        if piece.finish_reason is None or drawn.finished:
            return
        if piece.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM ended a candidate early ({piece.finish_reason}); its output says why")
        yield drawn.finish(piece.finish_reason)

    def _distribution(self, logprobs: Any, at: int, token: int) -> tuple[float, Top]:
        """The log-probability of the token drawn, and of the likeliest tokens."""
        start, end = logprobs.start_indices[at], logprobs.end_indices[at]
        distribution = dict(zip(logprobs.token_ids[start:end], logprobs.logprobs[start:end], strict=True))
        if not math.isfinite(distribution[token]):
            raise EngineError(f"version {self._version} gave a token the log-probability {distribution[token]}")
        likeliest = sorted(distribution, key=lambda token: -distribution[token])[: self._top]
        return distribution[token], (likeliest, [distribution[token] for token in likeliest])
