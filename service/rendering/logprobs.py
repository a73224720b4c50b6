"""Token log-probabilities in the two forms that OpenAI's endpoints have."""

from typing import Any

from bonbon.draws import Draw
from bonbon.engines.base import Delta, TokenAlternative

# JSON has no minus infinity; OpenAI writes this for tokens that cannot be drawn.
IMPOSSIBLE = -9999.0


def chat_logprobs(drawn: Draw | Delta) -> dict[str, Any]:
    """A chat choice's `logprobs`."""
    content = [
        _chat_token(text, logprob) | {"top_logprobs": [_chat_token(other.text, other.logprob) for other in others]}
        for text, logprob, others in _positions(drawn)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(drawn: Draw | Delta, offset: int) -> dict[str, Any]:
    """A completion choice's `logprobs`. `offset`: characters of the choice's tokens before these."""
    offsets = []
    for token in drawn.tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "text_offset": offsets,
        "token_logprobs": [_finite(logprob) for logprob in drawn.logprobs],
        "tokens": list(drawn.tokens),
        "top_logprobs": [
            {other.text: _finite(other.logprob) for other in others} | {text: _finite(logprob)}
            for text, logprob, others in _positions(drawn)
        ],
    }


def _positions(drawn: Draw | Delta) -> list[tuple[str, float, tuple[TokenAlternative, ...]]]:
    alternatives = drawn.alternatives or [()] * len(drawn.tokens)
    return list(zip(drawn.tokens, drawn.logprobs, alternatives, strict=True))


def _chat_token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


def _finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)
