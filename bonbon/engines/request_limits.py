"""Whether a request can be drawn at all: the same for every engine that knows its model."""

from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.errors import PromptTooLong, UserError

MOST_BIASES = 1024
"""Tokens that `logit_bias` may have: vLLM takes no more."""


def check_request(request: DrawRequest) -> None:
    """Raise UserError when `request` asks for nothing."""
    for name, value in (("n", request.n), ("max_tokens", request.sampling.max_tokens)):
        if value < 1:
            raise UserError(f"{name} = {value}: there is nothing to draw; ask for at least 1", param=name)
    check_sampling(request.sampling)


def check_sampling(sampling: Sampling) -> None:
    """Raise UserError when a field is out of its range, or contradicts another one."""
    ranges = {
        "min_p": 0 <= sampling.min_p <= 1 or "0 to 1",
        # Beyond that, 32-bit logits overflow.
        "repetition_penalty": 0.01 <= sampling.repetition_penalty <= 100 or "0.01 to 100",
        "frequency_penalty": -2 <= sampling.frequency_penalty <= 2 or "-2 to 2",
        "presence_penalty": -2 <= sampling.presence_penalty <= 2 or "-2 to 2",
        "logit_bias": all(-100 <= bias <= 100 for _, bias in sampling.logit_bias) or "biases of -100 to 100",
        "min_tokens": 0 <= sampling.min_tokens <= sampling.max_tokens or f"0 to max_tokens, {sampling.max_tokens}",
    }
    for name, allowed in ranges.items():
        if isinstance(allowed, str):
            raise UserError(f"{name} = {getattr(sampling, name)} is out of range: it may be {allowed}", param=name)
    if len(sampling.logit_bias) > MOST_BIASES:
        raise UserError(
            f"logit_bias has {len(sampling.logit_bias)} tokens, and may have {MOST_BIASES}: leave some out",
            param="logit_bias",
        )
    if sampling.response_format is not None:
        check_ends(sampling, "response_format")


def check_ends(sampling: Sampling, held_to: str) -> None:
    """Raise UserError when a candidate that is held to a form may not end when it is complete."""
    for name, given in (("ignore_eos", sampling.ignore_eos), ("min_tokens", sampling.min_tokens > 0)):
        if given:
            raise UserError(
                f"{name} contradicts {held_to}, whose text ends when it is complete: leave one of them out",
                param=name,
            )


def check_bias(sampling: Sampling, vocabulary: int) -> None:
    """Raise UserError when `logit_bias` names a token that is not one of the `vocabulary` first ones."""
    for token, _ in sampling.logit_bias:
        if not 0 <= token < vocabulary:
            raise UserError(
                f"logit_bias has the token id {token}, which is not in the model's vocabulary; use ids from 0 to "
                f"{vocabulary - 1}",
                param="logit_bias",
            )


def check_length(tokens: int, request: DrawRequest, most: int, *, max_tokens: int | None = None) -> None:
    """Raise PromptTooLong when a prompt of `tokens` and `max_tokens` exceed the context of `most` tokens.

    `max_tokens` is by default that of the request. The message is in OpenAI's words, which clients look for to shorten
    a prompt and try again.
    """
    asked = request.sampling.max_tokens if max_tokens is None else max_tokens
    if tokens + asked <= most:
        return
    prompt = "messages" if request.prompt.messages is not None else "prompt"
    limit = f"This model's maximum context length is {most} tokens."
    if tokens > most:
        raise PromptTooLong(
            f"{limit} However, your {prompt} resulted in {tokens} tokens. Please reduce the length of the {prompt}.",
            param=prompt,
        )
    raise PromptTooLong(
        f"{limit} However, you requested {tokens + asked} tokens ({tokens} in the {prompt}, {asked} in the "
        f"completion). Please reduce the length of the {prompt} or completion.",
        param=prompt if tokens == most else "max_tokens",
    )
