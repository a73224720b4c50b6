"""vLLM's errors as ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import VLLMClientError, VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from bonbon.errors import EngineError, UserError

DIED = "vLLM's engine process has died; its output says why, and it is started again"


@contextmanager
def translated() -> Iterator[None]:
    """Raise what vLLM raises as UserError where the request is at fault, and as EngineError where vLLM is."""
    try:
        yield
    except VLLMClientError as error:
        raise UserError(f"vLLM refuses the request: {first_line(error)}") from error
    except EngineDeadError as error:
        raise EngineError(DIED) from error
    except VLLMError as error:
        raise EngineError(f"vLLM failed: {type(error).__name__}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What `error` says, cut to one line; of pydantic's errors, whose first line only counts them, the next one."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if len(lines) > 1 and re.fullmatch(r"\d+ validation errors? for \w+", lines[0]):
        return lines[1].partition(" [type=")[0]
    return next(iter(lines), "no message")
