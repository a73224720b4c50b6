"""A candidate's text, as its tokens come."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any

from bonbon.engines.engine import Token

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How tokenizers that fall back on bytes for what they do not know write one."""
CONTEXT = 8
"""Tokens of the prompt that are decoded with a completion: more than one, because a character may take several."""


class Detokenizer:
    """Token ids to text.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.token: Callable[[int, int | None], Token] = lru_cache(maxsize=1 << 16)(self._token)
        self._single = lru_cache(maxsize=1 << 16)(lambda token_id: self.text([token_id], special=True))
        self._special = frozenset(tokenizer.all_special_ids)

    def context(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """The last tokens of a text, which decide how the next one reads.

        Many tokenizers write the space before a word only where the word begins no text.
        """
        last = list(islice((token_id for token_id in reversed(prompt) if token_id not in self._special), CONTEXT))[::-1]
        # Not from the middle of a character: bytes that make none would spoil those after them.
        while len(prompt) > CONTEXT and last and self.text(last).startswith(INCOMPLETE):
            last.pop(0)
        return tuple(last)

    def text(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """The text of `token_ids`; special tokens are left out unless `special`."""
        text: str = self._tokenizer.decode(
            token_ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text

    def _token(self, token_id: int, previous: int | None) -> Token:
        """What a token reads as after `previous`."""
        text = self._after(previous, token_id)
        if text and not self.text([token_id]) and self._single(token_id):
            return Token(text, None)
        return Token.of(self._bytes(token_id, text) if INCOMPLETE in text else text)

    def _bytes(self, token_id: int, text: str) -> bytes:
        """What a token writes that makes no whole characters when it is decoded alone, as `text`."""
        name = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if byte := BYTE.fullmatch(name):
            return bytes.fromhex(byte[1])
        byte_of = _byte_of()
        return bytes(byte_of[c] for c in name) if all(c in byte_of for c in name) else text.encode()

    def _after(self, previous: int | None, token_id: int) -> str:
        """One token's own text after `previous`: many tokenizers write the space between two only when decoding."""
        if previous is None:
            return self._single(token_id)
        before, both = self._single(previous), self.text([previous, token_id], special=True)
        fits = both.startswith(before) and len(both) > len(before)
        return both[len(before) :] if fits else self._single(token_id)


class Transcript:
    """The text of one candidate: whole characters only, ended before the first stop string.

    Args:
        detokenizer: turns ids into text.
        stop: strings that end the text.
        context: tokens that the candidate goes on from; see `Detokenizer.context`.
        min_tokens: a stop string that these first tokens complete does not end the text.
        special: whether special tokens are a part of the text.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop: Sequence[str] = (),
        context: Sequence[int] = (),
        *,
        min_tokens: int = 0,
        special: bool = False,
    ) -> None:
        self._decode = partial(detokenizer.text, special=special)
        self._context = list(context)
        self._stop = tuple(filter(None, stop))
        self._text = ""
        self._searched = 0
        self._min_tokens, self._kept = min_tokens, 0
        self._released = 0
        # Text is read as the difference between two windows that start a token or more back, because how a token
        # reads may depend on its neighbours; `_window` is the text of the tokens from `_start` to `_end`. Places are
        # counted from the first token of the context.
        self._start, self._end = 0, len(self._context)
        # Half a character at the end of the prompt belongs to the token that completes it.
        self._before = self._window = self._decode(self._context).rstrip(INCOMPLETE) if context else ""
        self.stopped = False

    def read(self, token_ids: Sequence[int]) -> None:
        """Read what is new in `token_ids`, all tokens so far; afterwards `stopped` says whether a stop string came."""
        window = self._decode(self._from_start(token_ids))
        if len(window) > len(self._window) and not window.endswith(INCOMPLETE):
            self._text += window[len(self._window) :]
            self._start, self._end = self._end, len(self._context) + len(token_ids)
            self._window = self._decode(self._from_start(token_ids))
            if len(token_ids) <= self._min_tokens:
                self._kept = len(self._text)
            self._cut()

    def close(self, token_ids: Sequence[int]) -> None:
        """Read what is left: no more tokens will come."""
        if self.stopped:
            return
        text = self._decode([*self._context, *token_ids])[len(self._before) :]
        if text.startswith(self._text):
            self._text = text
        else:  # what came last changed how earlier bytes read, and they are out already
            self._text += self._decode(self._from_start(token_ids))[len(self._window) :]
        self._cut()

    def release(self, *, final: bool) -> str:
        """The text that is certain and was not released before; `final` holds nothing back."""
        end = len(self._text) - (0 if final or self.stopped else self._held())
        released, self._released = self._text[self._released : end], max(end, self._released)
        return released

    def _from_start(self, token_ids: Sequence[int]) -> list[int]:
        """Context and `token_ids` from the place `_start` on."""
        return [*self._context[self._start :], *token_ids[max(0, self._start - len(self._context)) :]]

    def _cut(self) -> None:
        # What ends within the text that is kept does not end it.
        begin = {stop: max(self._searched, self._kept - len(stop) + 1) for stop in self._stop}
        found = [at for stop in self._stop if (at := self._text.find(stop, begin[stop])) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True
        elif self._stop:
            self._searched = max(0, len(self._text) - max(map(len, self._stop)) + 1)

    def _held(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return max(
            (size for stop in self._stop for size in range(1, len(stop)) if self._text.endswith(stop[:size])), default=0
        )


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """How byte-level tokenizers write bytes in their vocabularies: the byte of each character."""
    # Brings in a heavy library, which whoever has a tokenizer has loaded already.
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
