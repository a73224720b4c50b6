"""Checks whether a request can be sampled at all, in the same way for every engine."""

from bonbon.engines.engine import DrawRequest, Sampling
from bonbon.errors import PromptTooLong, UserError

MAX_LOGIT_BIASES = 1024
"""The maximum number of tokens in `logit_bias`; vLLM accepts no more."""


def check_request(request: DrawRequest) -> None:
    """Raises UserError when `request` asks for no candidates or no tokens, or has a sampling parameter out of range."""
    for name, value in (("n", request.n), ("max_tokens", request.sampling.max_tokens)):
        if value < 1:
            raise UserError(f"{name} = {value} requests nothing; set it to at least 1", param=name)
    check_sampling(request.sampling)


def check_sampling(sampling: Sampling) -> None:
    """Raises UserError when a field is out of its range, or contradicts another one."""
    ranges = {
        "temperature": 0 <= sampling.temperature <= 2 or "0 to 2",
        "top_p": 0 < sampling.top_p <= 1 or "more than 0 and at most 1",
        "min_p": 0 <= sampling.min_p <= 1 or "0 to 1",
        # Outside this range, 32-bit logits overflow.
        "repetition_penalty": 0.01 <= sampling.repetition_penalty <= 100 or "0.01 to 100",
        "frequency_penalty": -2 <= sampling.frequency_penalty <= 2 or "-2 to 2",
        "presence_penalty": -2 <= sampling.presence_penalty <= 2 or "-2 to 2",
        "logit_bias": all(-100 <= bias <= 100 for _, bias in sampling.logit_bias) or "biases of -100 to 100",
        "min_tokens": 0 <= sampling.min_tokens <= sampling.max_tokens or f"0 to max_tokens, {sampling.max_tokens}",
    }
    for name, allowed in ranges.items():
        if isinstance(allowed, str):
            raise UserError(f"{name} = {getattr(sampling, name)} is out of range; use {allowed}", param=name)
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES:
        raise UserError(
            f"logit_bias has {len(sampling.logit_bias)} tokens; remove some, the maximum is {MAX_LOGIT_BIASES}",
            param="logit_bias",
        )
    if sampling.response_format is not None:
        check_ends(sampling, "response_format")


def check_ends(sampling: Sampling, constraint: str) -> None:
    """Raises UserError when a candidate whose text is constrained may not end when the text is complete."""
    for name, given in (("ignore_eos", sampling.ignore_eos), ("min_tokens", sampling.min_tokens > 0)):
        if given:
            raise UserError(
                f"{name} contradicts {constraint}, whose text ends when it is complete: remove one of them",
                param=name,
            )


def check_bias(sampling: Sampling, vocabulary: int) -> None:
    """Raises UserError when `logit_bias` names a token id that is not below `vocabulary`."""
    for token, _ in sampling.logit_bias:
        if not 0 <= token < vocabulary:
            raise UserError(
                f"logit_bias has the token id {token}, which is not in the model's vocabulary; use ids from 0 to "
                f"{vocabulary - 1}",
                param="logit_bias",
            )


def check_length(tokens: int, request: DrawRequest, limit: int, *, max_tokens: int | None = None) -> None:
    """Raises PromptTooLong when a prompt of `tokens` and `max_tokens` exceed the context of `limit` tokens.

    `max_tokens` defaults to that of the request. The message uses OpenAI's wording, which clients look for in order to
    shorten a prompt and try again.
    """
    completion = request.sampling.max_tokens if max_tokens is None else max_tokens
    if tokens + completion <= limit:
        return
    prompt = "messages" if request.prompt.messages is not None else "prompt"
    if tokens > limit:
        raise too_long(str(tokens), limit, prompt)
    raise PromptTooLong(
        f"{_maximum(limit)} However, you requested {tokens + completion} tokens ({tokens} in the {prompt}, "
        f"{completion} in the completion). Please reduce the length of the {prompt} or completion.",
        param=prompt if tokens == limit else "max_tokens",
    )


def too_long(tokens: str, limit: int, prompt: str) -> PromptTooLong:
    """Returns the error for a prompt whose `tokens` alone exceed the context; `prompt` names its field."""
    return PromptTooLong(
        f"{_maximum(limit)} However, your {prompt} resulted in {tokens} tokens. Please reduce the length of the "
        f"{prompt}.",
        param=prompt,
    )


def _maximum(limit: int) -> str:
    return f"This model's maximum context length is {limit} tokens."
