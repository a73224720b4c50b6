"""Tool calls: what a candidate asks to have run for it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function. `arguments` is the JSON text as the model wrote it, sound or not."""

    id: str
    name: str
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it in a message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a candidate's call `index`: id and name come once, the arguments grow."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


def written(content: str, calls: Iterable[ToolCall]) -> str:
    """Content and calls as one text, which rewards read and the pair log keeps.

    A line for each call, after the content if there is any: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`.
    """
    return "\n".join([*([content] if content else []), *map(_line, calls)])


def canonical(value: object) -> str:
    """JSON text that is the same for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _line(call: ToolCall) -> str:
    try:
        json.loads(call.arguments)
        arguments = call.arguments
    except ValueError:  # cut off, or not written as JSON at all
        arguments = json.dumps(call.arguments, ensure_ascii=False)
    return f'<tool_call>{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {arguments}}}</tool_call>'
