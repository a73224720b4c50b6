"""Refuses a text that is clearly too long without tokenising all of it, which may take seconds."""

from typing import Any

from bonbon.engines.request_limits import too_long

BEGINNING = 8
"""The beginning of a text has this many characters for each token of the context."""
MARGIN = 128
"""The tokens that what follows may at most change in the beginning, such as those of a long word that is not finished.
WordPiece makes one token of a word of more than 100 characters."""


def check_beginning(tokenizer: Any, text: str, limit: int, param: str) -> None:
    """Raises PromptTooLong, naming `param`, when the beginning of a text alone is far longer than `limit` tokens.

    What follows the beginning changes only the tokens where both meet, so that half as many tokens again as the limit
    leave no doubt. A text that is not refused here may still be too long.
    """
    beginning = text[: BEGINNING * limit]
    if len(beginning) == len(text):
        return
    tokens = len(tokenizer.encode(beginning, add_special_tokens=False, verbose=False))
    if tokens > limit + limit // 2 + MARGIN:
        raise too_long(f"more than {limit}", limit, param)
