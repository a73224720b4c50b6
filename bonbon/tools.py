"""Tool calls: the functions that a candidate asks the client to run."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function. `arguments` is the JSON text as the model wrote it, whether it is valid or not."""

    id: str
    name: str
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the call in the format of OpenAI's messages."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a candidate's call `index`.

    The id and name come once; the pieces of the arguments are concatenated.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


def written(content: str, calls: Iterable[ToolCall]) -> str:
    """Returns the content and calls as one text, which rewards read and the pair log stores.

    Each call is a line after the content, if there is any: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`.
    """
    return "\n".join([*([content] if content else []), *map(_line, calls)])


def canonical(value: object) -> str:
    """Returns JSON text that is identical for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _line(call: ToolCall) -> str:
    try:
        json.loads(call.arguments)
        arguments = call.arguments
    except ValueError:  # The arguments are truncated, or are not JSON at all.
        arguments = json.dumps(call.arguments, ensure_ascii=False)
    return f'<tool_call>{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {arguments}}}</tool_call>'
