"""What a fleet's error answers mean to whoever asked. Its own words are kept short, and to what a client may see."""

import json
import re
from typing import Any

from bonbon.errors import BonbonError, EngineError, PromptTooLong, UserError

LONGEST = 300
OURS = frozenset(
    {
        *("chat_template_kwargs", "frequency_penalty", "logit_bias", "messages", "min_p", "min_tokens"),
        *("presence_penalty", "prompt", "reasoning_effort", "repetition_penalty", "response_format", "stop"),
        *("temperature", "tool_choice", "tools", "top_k", "top_logprobs", "top_p"),
    }
)
"""Fields of a server's request that are called the same in ours."""


class Elsewhere(EngineError):
    """One server failed; another may do. `down`: it did not answer at all, so it should get nothing for now."""

    def __init__(self, message: str, *, down: bool = False) -> None:
        super().__init__(message)
        self.down = down


class NotThere(Elsewhere):
    """The server does not have the version: it was restarted, or somebody unloaded it."""


def refusal(status: int, content: bytes) -> BonbonError:
    """The error for an answer to a draw whose status is not 200."""
    message, param = said(content)
    if status == 404 and param == "model":
        return NotThere("the version is not on this server")
    if status in (401, 403):
        return EngineError("the fleet refuses the gateway's key; set engine_options.api_key or api_key_env")
    if status in (429, 408) or status >= 500:
        return Elsewhere(f"a server of the fleet answered {status}")
    if "context length" in message:
        return PromptTooLong(message, param="max_tokens")
    return UserError(
        f"the engine refuses the request: {message or f'status {status}'}", param=param if param in OURS else None
    )


def said(content: bytes) -> tuple[str, str | None]:
    """Message and param of a server's error, the message cut short; empty when it is none of its usual form."""
    try:
        error: Any = json.loads(content)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", None
    short = re.sub(r" \(parameter=.*\)$", "", " ".join(message.split()))
    return short if len(short) <= LONGEST else short[: LONGEST - 1] + "…", param if isinstance(param, str) else None
