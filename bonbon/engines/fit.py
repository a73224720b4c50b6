"""Whether a request can be drawn at all: the same for every engine that knows its model."""

from bonbon.engines.base import DrawRequest
from bonbon.errors import PromptTooLong, UserError


def check_request(request: DrawRequest) -> None:
    """Raise UserError when `request` asks for nothing."""
    for name, value in (("n", request.n), ("max_tokens", request.sampling.max_tokens)):
        if value < 1:
            raise UserError(f"{name} = {value}: there is nothing to draw; ask for at least 1", param=name)


def check_length(tokens: int, request: DrawRequest, most: int) -> None:
    """Raise PromptTooLong when a prompt of `tokens` and max_tokens exceed the context of `most` tokens."""
    asked = request.sampling.max_tokens
    if tokens + asked > most:
        raise PromptTooLong(
            f"{tokens} prompt tokens and max_tokens {asked} exceed the context of "
            f"{most} tokens; shorten the prompt or lower max_tokens",
            param="max_tokens",
        )
