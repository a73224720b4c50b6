"""Writes token log-probabilities in the formats of OpenAI's endpoints."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from bonbon.engines.candidates import Draw
from bonbon.engines.engine import Delta, PromptLogprobs, Token, TokenAlternative

# JSON has no minus infinity; OpenAI writes this for tokens that cannot be sampled.
IMPOSSIBLE = -9999.0


class TextOffsets:
    """Tracks where in a choice's text its tokens begin, in characters. A token inside a character begins where that
    does."""

    def __init__(self) -> None:
        self._characters = 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def next(self, token: Token) -> int:
        """Returns the offset of the choice's next token."""
        utf8 = token.utf8 or b""
        begun, _ = self._decoder.getstate()
        # Earlier bytes that this token does not complete to a character become a replacement character of the text.
        broken = max(0, len((begun + utf8[:1]).decode(errors="replace")) - 1)
        offset = self._characters + broken
        self._characters += len(self._decoder.decode(utf8))
        return offset


def chat_logprobs(drawn: Draw | Delta) -> dict[str, Any]:
    """Returns the `logprobs` of a chat choice."""
    content = [
        _chat_token(token, logprob) | {"top_logprobs": [_chat_token(other.token, other.logprob) for other in others]}
        for token, logprob, others in zip(drawn.tokens, drawn.logprobs, _alternatives(drawn), strict=True)
    ]
    return {"content": content, "refusal": None}


def response_logprobs(drawn: Draw | Delta) -> list[dict[str, Any]]:
    """Returns the `logprobs` of a response's text: those of a chat, except that `bytes` is a list for every token."""
    return [
        _with_bytes(entry) | {"top_logprobs": [_with_bytes(other) for other in entry["top_logprobs"]]}
        for entry in chat_logprobs(drawn)["content"]
    ]


def completion_logprobs(drawn: Draw | Delta | PromptLogprobs, offsets: TextOffsets) -> dict[str, Any]:
    """Returns the `logprobs` of a completion choice.

    The first token of a prompt has no log-probability, which OpenAI writes as null.

    Args:
        offsets: The choice's offsets, which have already processed its earlier tokens.
    """
    return {
        "text_offset": [offsets.next(token) for token in drawn.tokens],
        "token_logprobs": [None if logprob is None else _finite(logprob) for logprob in drawn.logprobs],
        "tokens": [_name(token) for token in drawn.tokens],
        "top_logprobs": [
            None
            if logprob is None
            else {_name(other.token): _finite(other.logprob) for other in others} | {_name(token): _finite(logprob)}
            for token, logprob, others in zip(drawn.tokens, drawn.logprobs, _alternatives(drawn), strict=True)
        ],
    }


def _alternatives(drawn: Draw | Delta | PromptLogprobs) -> Sequence[tuple[TokenAlternative, ...]]:
    return drawn.alternatives or [()] * len(drawn.tokens)


def _chat_token(token: Token, logprob: float) -> dict[str, Any]:
    utf8 = None if token.utf8 is None else list(token.utf8)
    return {"token": token.text, "logprob": _finite(logprob), "bytes": utf8}


def _with_bytes(token: dict[str, Any]) -> dict[str, Any]:
    return token | {"bytes": token["bytes"] or []}


def _name(token: Token) -> str:
    """Returns the token's text. A completion has no field for bytes: OpenAI writes `bytes:\\xe2\\x80` for parts of
    characters."""
    whole = token.utf8 is None or token.utf8.decode(errors="ignore").encode() == token.utf8
    return token.text if whole else f"bytes:{token.text}"


def _finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)
