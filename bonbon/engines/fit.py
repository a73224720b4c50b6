"""Whether a request can be drawn at all: the same for every engine that knows its model."""

from bonbon.engines.base import DrawRequest
from bonbon.errors import PromptTooLong, UserError


def check_request(request: DrawRequest) -> None:
    """Raise UserError when `request` asks for nothing."""
    for name, value in (("n", request.n), ("max_tokens", request.sampling.max_tokens)):
        if value < 1:
            raise UserError(f"{name} = {value}: there is nothing to draw; ask for at least 1", param=name)


def check_length(tokens: int, request: DrawRequest, most: int) -> None:
    """Raise PromptTooLong when a prompt of `tokens` and max_tokens exceed the context of `most` tokens.

    The message is in OpenAI's words, which clients look for to shorten a prompt and try again.
    """
    asked = request.sampling.max_tokens
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
