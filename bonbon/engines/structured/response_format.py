"""Reads OpenAI's `response_format`, which constrains a candidate's text, into the form that `Sampling` carries."""

import json
from collections.abc import Mapping
from typing import Any

from bonbon.engines.engine import Sampling
from bonbon.errors import UserError


def canonical(response_format: Mapping[str, Any]) -> str | None:
    """Returns the JSON text of OpenAI's object, or None for `{"type": "text"}`, which constrains nothing.

    Keys keep their order, because a schema's properties are sampled in that order.
    """
    if response_format.get("type") == "text":
        return None
    return json.dumps(response_format, ensure_ascii=False, separators=(",", ":"))


def refuse(sampling: Sampling, engine: str) -> None:
    """Raises UserError when `sampling` has a response format; for engines that do not support it."""
    if sampling.response_format is not None:
        raise UserError(
            f"response_format {sampling.response_format[:100]} is not supported by the {engine} engine: leave it out, "
            "or use the engine embedded, vllm or remote",
            param="response_format",
        )
