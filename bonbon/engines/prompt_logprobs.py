"""Turns the numbers that a model gives for a prompt into what an engine reports."""

from collections.abc import Sequence
from itertools import pairwise

from bonbon.engines.candidate_stream import Top
from bonbon.engines.engine import PromptLogprobs, Started, Token, TokenAlternative
from bonbon.engines.text.transcript import Detokenizer


def prompt_logprobs(
    started: Started, logprobs: Sequence[float], tops: Sequence[Top], detokenizer: Detokenizer
) -> PromptLogprobs:
    """Returns what an engine reports about a prompt.

    Args:
        started: The prompt.
        logprobs: The log-probability of each token except the first.
        tops: The most likely tokens at the position of each token except the first.
        detokenizer: Turns ids into text.
    """
    ids = started.token_ids
    tokens = [detokenizer.token(ids[0], None)]
    tokens += [detokenizer.token(token, before) for before, token in pairwise(ids)]
    alternatives = [
        tuple(TokenAlternative(i, detokenizer.token(i, before), logprob) for i, logprob in zip(*top, strict=True))
        for before, top in zip(ids, tops, strict=False)
    ]
    return PromptLogprobs(started, in_text(tokens, started.text), (None, *logprobs), ((), *alternatives))


def in_text(tokens: Sequence[Token], text: str) -> tuple[Token, ...]:
    """Returns the tokens with the bytes that each of them has in the prompt's text.

    The text contains a special token's name only where the client wrote it, and a tokenizer may write a space before
    the first word that the text does not have.
    """
    rest, found = text.encode(), []
    for token in tokens:
        written = token.text.encode() if token.utf8 is None else token.utf8
        if not rest.startswith(written):
            written = written.lstrip(b" ")
        if written and rest.startswith(written):
            rest = rest[len(written) :]
            found.append(Token(token.text, written))
        else:
            found.append(Token(token.text, None))
    return tuple(found)
