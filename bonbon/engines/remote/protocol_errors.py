"""Translates a fleet's error answers. The server's own words are shortened, and reduced to what a client may see."""

import json
import re
from typing import Any

from bonbon.errors import BonbonError, EngineError, PromptTooLong, UserError

MAX_MESSAGE_LENGTH = 300
OURS = frozenset(
    {
        *("chat_template_kwargs", "frequency_penalty", "logit_bias", "messages", "min_p", "min_tokens"),
        *("presence_penalty", "prompt", "reasoning_effort", "repetition_penalty", "response_format", "stop"),
        *("temperature", "tool_choice", "tools", "top_k", "top_logprobs", "top_p"),
    }
)
"""The fields of a server's request that have the same name in bonbon's API."""


class ServerFailed(EngineError):
    """Raised when one server failed and another may succeed.

    With `down`, it did not answer and should get no requests for now.
    """

    def __init__(self, message: str, *, down: bool = False) -> None:
        super().__init__(message)
        self.down = down


class VersionMissing(ServerFailed):
    """Raised when a server does not have the version, because it was restarted or the version was unloaded."""


def refusal(status: int, content: bytes) -> BonbonError:
    """Returns the error for an answer whose status is not 200."""
    message, param = read_error(content)
    if status == 404 and param == "model":
        return VersionMissing("the server does not have this version")
    if status in (401, 403):
        return EngineError("the fleet refuses the gateway's API key; set engine_options.api_key or api_key_env")
    if status in (429, 408) or status >= 500:
        return ServerFailed(f"a server of the fleet answered with status {status}")
    if "context length" in message:
        return PromptTooLong(message, param="max_tokens")
    return UserError(
        f"the engine refuses the request: {message or f'status {status}'}", param=param if param in OURS else None
    )


def read_error(content: bytes) -> tuple[str, str | None]:
    """Returns message and param of a server's error, with a shortened message.

    Returns an empty message when the answer has another format.
    """
    try:
        error: Any = json.loads(content)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", None
    short = re.sub(r" \(parameter=.*\)$", "", " ".join(message.split()))
    if len(short) > MAX_MESSAGE_LENGTH:
        short = short[: MAX_MESSAGE_LENGTH - 1] + "…"
    return short, param if isinstance(param, str) else None
