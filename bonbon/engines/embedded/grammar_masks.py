"""Constrains the rows of a micro-batch to their grammars."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray
from torch import Tensor

from bonbon.errors import UserError


class GrammarMasks:
    """Excludes the tokens that a row's grammar does not allow next; rows without a grammar stay unchanged.

    Args:
        matchers: The matchers of the rows that have a grammar, by the row's position in the batch. They advance token
            by token.
        size: The number of token ids that the grammars know.
        vocabulary: The number of tokens in the logits.
        device: The device of the logits.
    """

    def __init__(self, matchers: Mapping[int, LLMatcher], size: int, vocabulary: int, device: torch.device) -> None:
        self._matchers, self._vocabulary, self._device = dict(matchers), vocabulary, device
        known = np.arange(32 * -(-size // 32)) < vocabulary
        self._known = np.packbits(known, bitorder="little")
        self.failures: dict[int, UserError] = {}
        """The errors of the rows that cannot continue, by position; their next tokens are ignored."""

    def __call__(self, scores: Tensor) -> Tensor:
        """Returns a copy of the logits (rows, vocabulary) with negative infinity where a grammar forbids the token."""
        rows, allowed = self._allowed()
        if not rows:
            return scores
        at = torch.tensor(rows, device=self._device)
        mask = _unpacked(torch.from_numpy(allowed).to(self._device))[:, : self._vocabulary]
        return scores.index_copy(0, at, scores[at].masked_fill(~mask, -torch.inf))

    def note(self, tokens: Tensor) -> None:
        """Advances the grammars by the sampled tokens (rows, 1)."""
        sampled = tokens.squeeze(1).tolist()
        for row, matcher in list(self._matchers.items()):
            if not matcher.is_stopped() and not matcher.consume_token(sampled[row]):
                self._fail(row, matcher)

    def release(self, row: int) -> None:
        """Stops constraining a row whose candidate has ended."""
        self._matchers.pop(row, None)

    def _allowed(self) -> tuple[Sequence[int], NDArray[np.uint8]]:
        """Returns the rows that have a grammar, and for each of them one bit per token, the lowest bit first."""
        rows = list(self._matchers)
        width = len(self._known)
        allowed = np.zeros((len(rows), width), dtype=np.uint8)
        if rows:
            matchers = [(self._matchers[row], at) for at, row in enumerate(rows)]
            _executor().unsafe_compute_mask_ptr(matchers, allowed.ctypes.data, width, len(rows))
            allowed &= self._known
        possible = []
        for at, row in enumerate(rows):
            if self._matchers[row].is_error() or not allowed[at].any():
                self._fail(row, self._matchers[row])
            else:
                possible.append(at)
        return [rows[at] for at in possible], allowed[possible]

    def _fail(self, row: int, matcher: LLMatcher) -> None:
        del self._matchers[row]
        why = matcher.get_error().strip().partition("\n")[0] or "no token of the model may come next"
        self.failures[row] = UserError(
            f"the request's schema cannot be applied while sampling ({why[:200]}): simplify its patterns and bounds"
        )


def _unpacked(bits: Tensor) -> Tensor:
    """Unpacks bytes (rows, bytes) into booleans (rows, 8 * bytes), the lowest bit first."""
    places = torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (bits[:, :, None] >> places & 1).flatten(1).bool()


@lru_cache(maxsize=1)
def _executor() -> LLExecutor:
    """Returns the thread pool that computes the masks."""
    return LLExecutor()
