"""Holding the rows of a micro-batch to their grammars."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray
from torch import Tensor

from bonbon.errors import UserError


class GrammarMasks:
    """Makes the tokens impossible that a row's grammar does not allow next, and leaves the other rows alone.

    Args:
        matchers: of the rows that have a grammar, by the row's place in the batch. They are advanced token by token.
        size: how many token ids the grammars know.
        vocabulary: how many tokens the logits are of.
        device: where the logits are.
    """

    def __init__(self, matchers: Mapping[int, LLMatcher], size: int, vocabulary: int, device: torch.device) -> None:
        self._matchers, self._vocabulary, self._device = dict(matchers), vocabulary, device
        known = np.arange(32 * -(-size // 32)) < vocabulary
        self._known = np.packbits(known, bitorder="little")
        self.failures: dict[int, UserError] = {}
        """Why rows cannot go on, by their place. What is drawn for them counts for nothing."""

    def __call__(self, scores: Tensor) -> Tensor:
        """A copy of the logits (rows, vocabulary), negative infinity where a grammar forbids the token."""
        rows, allowed = self._allowed()
        if not rows:
            return scores
        at = torch.tensor(rows, device=self._device)
        mask = _unpacked(torch.from_numpy(allowed).to(self._device))[:, : self._vocabulary]
        return scores.index_copy(0, at, scores[at].masked_fill(~mask, -torch.inf))

    def note(self, tokens: Tensor) -> None:
        """Advance the grammars by the tokens (rows, 1) that were drawn."""
        drawn = tokens.squeeze(1).tolist()
        for row, matcher in list(self._matchers.items()):
            if not matcher.is_stopped() and not matcher.consume_token(drawn[row]):
                self._fail(row, matcher)

    def release(self, row: int) -> None:
        """A row is over: it may get any token."""
        self._matchers.pop(row, None)

    def _allowed(self) -> tuple[Sequence[int], NDArray[np.uint8]]:
        """The rows that have a grammar, and for each of them a bit for every token, the lowest first."""
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
        why = matcher.get_error().strip().partition("\n")[0] or "the model has no token that may come next"
        self.failures[row] = UserError(
            f"a candidate cannot be held to the request's schema ({why[:200]}): simplify its patterns and bounds"
        )


def _unpacked(bits: Tensor) -> Tensor:
    """Bytes (rows, bytes) as booleans (rows, 8 * bytes), the lowest bit first."""
    places = torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (bits[:, :, None] >> places & 1).flatten(1).bool()


@lru_cache(maxsize=1)
def _executor() -> LLExecutor:
    """The threads that compute masks."""
    return LLExecutor()
