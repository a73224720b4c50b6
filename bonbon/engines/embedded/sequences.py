"""The rows of a micro-batch on the device: token ids, attention mask and key-value cache."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache


class Sequences:
    """Left-padded sequences of which only the last token is not in the cache yet.

    Args:
        ids: The token ids, shape (rows, length).
        mask: 1 at tokens and 0 at padding, shape (rows, length).
        cache: The keys and values of all columns but the last.
    """

    def __init__(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> None:
        self.ids, self.mask, self.cache = ids, mask, cache

    @property
    def longest(self) -> int:
        """Returns the number of tokens of the longest row."""
        return int(self.mask.sum(-1).max())

    def extend(self, ids: Tensor) -> None:
        """Replaces the token ids by `ids` (rows, longer length) after the cache has grown accordingly."""
        grown = ids.shape[1] - self.ids.shape[1]
        self.ids, self.mask = ids, pad(self.mask, (0, grown), value=1)

    def select(self, rows: list[int]) -> None:
        """Keeps these rows, in this order and possibly repeated, and removes the padding that they do not need."""
        index = torch.tensor(rows, device=self.ids.device)
        self.ids, self.mask = self.ids[index], self.mask[index]
        # One column of padding stays, because the cache must never be empty and a prompt may be a single token.
        surplus = max(0, int(self.mask.argmax(-1).min()) - 1)
        self.ids, self.mask = self.ids[:, surplus:], self.mask[:, surplus:]
        for layer in self.cache.layers:
            layer.keys = layer.keys[index, :, surplus:]
            layer.values = layer.values[index, :, surplus:]

    def join(self, other: "Sequences") -> None:
        """Appends the rows of `other`; the shorter rows get padding on the left."""
        length = max(self.ids.shape[1], other.ids.shape[1])
        for part in (self, other):
            part._pad(length - part.ids.shape[1])
        self.ids, self.mask = torch.cat([self.ids, other.ids]), torch.cat([self.mask, other.mask])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([mine.keys, theirs.keys])
            mine.values = torch.cat([mine.values, theirs.values])

    def _pad(self, columns: int) -> None:
        if columns:
            self.ids, self.mask = pad(self.ids, (columns, 0)), pad(self.mask, (columns, 0))
            for layer in self.cache.layers:
                layer.keys = pad(layer.keys, (0, 0, columns, 0))
                layer.values = pad(layer.values, (0, 0, columns, 0))
