"""Translates vLLM's errors into bonbon's."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import VLLMClientError, VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from bonbon.errors import EngineError, UserError

DIED = "vLLM's engine process died; its output has the cause, and bonbon is restarting it"


@contextmanager
def translated() -> Iterator[None]:
    """Translates vLLM's errors: to UserError where the request is at fault, and to EngineError where vLLM is."""
    try:
        yield
    except VLLMClientError as error:
        raise UserError(f"vLLM refuses the request: {first_line(error)}") from error
    except EngineDeadError as error:
        raise EngineError(DIED) from error
    except VLLMError as error:
        raise EngineError(f"vLLM failed: {type(error).__name__}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message.

    The first line of pydantic's errors only counts them, so their second line is returned. vLLM's list of all the
    architectures that it supports, thousands of characters long, is left out.
    """
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if len(lines) > 1 and re.fullmatch(r"\d+ validation errors? for \w+", lines[0]):
        lines = [lines[1].partition(" [type=")[0]]
    return next(iter(lines), "no message").partition(" Supported architectures:")[0]
