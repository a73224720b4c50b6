"""Turns a candidate's tokens into text as they arrive."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any

from bonbon.engines.engine import Token

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
BYTE = re.compile("<0x([0-9A-F]{2})>")
"""The form in which tokenizers with byte fallback write a byte of an unknown character."""
CONTEXT = 8
"""The number of prompt tokens that are decoded with a completion: more than one, because a character may take
several."""


class Detokenizer:
    """Decodes token ids to text.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.token: Callable[[int, int | None], Token] = lru_cache(maxsize=1 << 16)(self._token)
        self._single = lru_cache(maxsize=1 << 16)(lambda token_id: self.text([token_id], special=True))
        self._special = frozenset(tokenizer.all_special_ids)

    def context(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Returns the last tokens of a text, which influence how the next token is decoded.

        Many tokenizers write the space before a word only where the word does not begin a text.
        """
        last = list(islice((token_id for token_id in reversed(prompt) if token_id not in self._special), CONTEXT))[::-1]
        # The context must not start within a character, because incomplete bytes would corrupt those after them.
        while len(prompt) > CONTEXT and last and self.text(last).startswith(INCOMPLETE):
            last.pop(0)
        return tuple(last)

    def text(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Returns the text of `token_ids`, without special tokens unless `special` is set."""
        text: str = self._tokenizer.decode(
            token_ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text

    def _token(self, token_id: int, previous: int | None) -> Token:
        """Returns the text that a token adds after `previous`."""
        text = self._after(previous, token_id)
        if text and not self.text([token_id]) and self._single(token_id):
            return Token(text, None)
        return Token.of(self._bytes(token_id, text) if INCOMPLETE in text else text)

    def _bytes(self, token_id: int, text: str) -> bytes:
        """Returns the bytes of a token that makes no whole characters when it is decoded alone, as `text`."""
        name = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if byte := BYTE.fullmatch(name):
            return bytes.fromhex(byte[1])
        byte_of = _byte_of()
        return bytes(byte_of[c] for c in name) if all(c in byte_of for c in name) else text.encode()

    def _after(self, previous: int | None, token_id: int) -> str:
        """Returns a token's own text after `previous`.

        Many tokenizers add the space between the two only when decoding both.
        """
        if previous is None:
            return self._single(token_id)
        before, both = self._single(previous), self.text([previous, token_id], special=True)
        fits = both.startswith(before) and len(both) > len(before)
        return both[len(before) :] if fits else self._single(token_id)


class Transcript:
    """The text of one candidate: whole characters only, ended before the first stop string.

    Args:
        detokenizer: Turns ids into text.
        stop: The strings that end the text.
        context: The tokens that the candidate continues; see `Detokenizer.context`.
        min_tokens: The number of tokens within which a stop string does not end the text.
        special: Whether special tokens are part of the text.
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
        # New text is the difference between two windows that start one or more tokens back, because the text of a
        # token may depend on its neighbours. `_window` is the text of the tokens from `_start` to `_end`, which count
        # from the first token of the context.
        self._start, self._end = 0, len(self._context)
        # An incomplete character at the end of the prompt belongs to the token that completes it.
        self._before = self._window = self._decode(self._context).rstrip(INCOMPLETE) if context else ""
        self.stopped = False

    def read(self, token_ids: Sequence[int]) -> None:
        """Reads the new tokens of `token_ids`, all tokens so far; then `stopped` is whether a stop string was found."""
        window = self._decode(self._from_start(token_ids))
        if len(window) > len(self._window) and not window.endswith(INCOMPLETE):
            self._text += window[len(self._window) :]
            self._start, self._end = self._end, len(self._context) + len(token_ids)
            self._window = self._decode(self._from_start(token_ids))
            if len(token_ids) <= self._min_tokens:
                self._kept = len(self._text)
            self._cut()

    def close(self, token_ids: Sequence[int]) -> None:
        """Reads the remaining text after the last token."""
        if self.stopped:
            return
        text = self._decode([*self._context, *token_ids])[len(self._before) :]
        if text.startswith(self._text):
            self._text = text
        else:  # The last tokens changed how earlier bytes are decoded, which have been released already.
            self._text += self._decode(self._from_start(token_ids))[len(self._window) :]
        self._cut()

    def release(self, *, final: bool) -> str:
        """Returns the text that is certain and was not released before; with `final`, returns all that is left."""
        end = len(self._text) - (0 if final or self.stopped else self._held())
        released, self._released = self._text[self._released : end], max(end, self._released)
        return released

    def _from_start(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the context and `token_ids` from position `_start` on."""
        return [*self._context[self._start :], *token_ids[max(0, self._start - len(self._context)) :]]

    def _cut(self) -> None:
        # A stop string that ends within the first `min_tokens` tokens does not count.
        begin = {stop: max(self._searched, self._kept - len(stop) + 1) for stop in self._stop}
        found = [at for stop in self._stop if (at := self._text.find(stop, begin[stop])) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True
        elif self._stop:
            self._searched = max(0, len(self._text) - max(map(len, self._stop)) + 1)

    def _held(self) -> int:
        """Returns how many of the last characters may be the beginning of a stop string."""
        return max(
            (size for stop in self._stop for size in range(1, len(stop)) if self._text.endswith(stop[:size])), default=0
        )


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """Returns the byte for each character by which byte-level tokenizers write bytes in their vocabularies."""
    # Imported here because the library is heavy; whoever has a tokenizer has loaded it already.
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
