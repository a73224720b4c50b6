"""The shape that a candidate's text must have: OpenAI's `response_format`, as `Sampling` carries it."""

import json
from collections.abc import Mapping
from typing import Any

from bonbon.engines.engine import Sampling
from bonbon.errors import UserError


def canonical(response_format: Mapping[str, Any]) -> str | None:
    """The JSON text of OpenAI's object; None for the one that asks for nothing, `{"type": "text"}`.

    Keys stay in the order they came in: a schema's properties are drawn in that order.
    """
    if response_format.get("type") == "text":
        return None
    return json.dumps(response_format, ensure_ascii=False, separators=(",", ":"))


def refuse(sampling: Sampling, engine: str) -> None:
    """Raise UserError when `sampling` asks for a shape, which the engine named cannot hold a draw to."""
    if sampling.response_format is not None:
        raise UserError(
            f"response_format {sampling.response_format[:100]} is not supported by the {engine} engine: leave it out, "
            "or serve with engine embedded, vllm or remote",
            param="response_format",
        )
