"""Builds the `output` of a response, a message and function calls, and the events of its stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bonbon.engines.candidates import Draw
from bonbon.engines.engine import Delta
from bonbon.ids import time_ordered_id
from bonbon.tools import ToolCall, ToolCallDelta
from service.rendering.logprobs import response_logprobs

Status = Literal["in_progress", "completed", "incomplete"]
ItemEvent = dict[str, Any]


@dataclass(slots=True)
class Message:
    """The text of an answer. `index` is its position in the output."""

    index: int
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"msg_{time_ordered_id()}")

    @property
    def part(self) -> dict[str, Any]:
        """The message's content."""
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self.logprobs)}

    def item(self, status: Status) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self.part]
        return {"type": "message", "id": self.id, "status": status, "role": "assistant", "content": content}

    def closed(self) -> Iterator[ItemEvent]:
        """Yields the events that contain the complete content."""
        yield {
            "type": "response.output_text.done",
            "item_id": self.id,
            "content_index": 0,
            "text": self.text,
            "logprobs": list(self.logprobs),
        }
        yield {"type": "response.content_part.done", "item_id": self.id, "content_index": 0, "part": self.part}


@dataclass(slots=True)
class Call:
    """A function call. `index` is its position in the output."""

    index: int
    call_id: str
    name: str
    arguments: str = ""
    id: str = field(default_factory=lambda: f"fc_{time_ordered_id()}")

    def item(self, status: Status) -> dict[str, Any]:
        return {
            "type": "function_call",
            "id": self.id,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
            "status": status,
        }

    def closed(self) -> Iterator[ItemEvent]:
        """Yields the event that contains the complete arguments."""
        yield {
            "type": "response.function_call_arguments.done",
            "item_id": self.id,
            "name": self.name,
            "arguments": self.arguments,
        }


class Output:
    """The items of one answer, in the order in which they began. All of them end with the answer.

    Args:
        parallel: Whether more than one call is allowed.
        logprobs: Whether the text has log-probabilities.
    """

    def __init__(self, *, parallel: bool, logprobs: bool) -> None:
        self.parallel, self.logprobs = parallel, logprobs
        self._message: Message | None = None
        self._calls: dict[int, Call] = {}
        self._unsent: list[dict[str, Any]] = []

    def grow(self, drawn: Draw | Delta) -> Iterator[ItemEvent]:
        """Adds generated text and calls, and yields their events."""
        if self.logprobs:
            self._unsent += response_logprobs(drawn)
        if drawn.text:
            yield from self._said(drawn.text)
        calls: Sequence[ToolCall | ToolCallDelta] = drawn.tool_calls
        for position, call in enumerate(calls):
            piece = _piece(call, position)
            if self.parallel or piece.index == 0:
                yield from self._called(piece)

    def end(self, status: Status) -> Iterator[ItemEvent]:
        """Yields the last events of every item. An answer without items gets a message without text."""
        if not self._items or (self._message is not None and self._unsent):
            yield from self._said("")
        for item, described in zip(self._items, self.to_list(status), strict=True):
            for event in item.closed():
                yield event | {"output_index": item.index}
            yield {"type": "response.output_item.done", "output_index": item.index, "item": described}

    def to_list(self, status: Status) -> list[dict[str, Any]]:
        """Returns all items. In an incomplete answer, the last item is incomplete."""
        last = len(self._items) - 1
        return [item.item(status if item.index == last else "completed") for item in self._items]

    @property
    def _items(self) -> list[Message | Call]:
        message = [] if self._message is None else [self._message]
        return sorted([*message, *self._calls.values()], key=lambda item: item.index)

    def _said(self, text: str) -> Iterator[ItemEvent]:
        message = self._message
        if message is None:
            message = self._message = Message(len(self._items))
            yield _added(message)
            yield {
                "type": "response.content_part.added",
                "output_index": message.index,
                "item_id": message.id,
                "content_index": 0,
                "part": message.part,
            }
        message.text += text
        message.logprobs += self._unsent
        if text or self._unsent:
            yield {
                "type": "response.output_text.delta",
                "output_index": message.index,
                "item_id": message.id,
                "content_index": 0,
                "delta": text,
                "logprobs": self._unsent,
            }
        self._unsent = []

    def _called(self, piece: ToolCallDelta) -> Iterator[ItemEvent]:
        call = self._calls.get(piece.index)
        if call is None:
            call = self._calls[piece.index] = Call(len(self._items), piece.id, piece.name)
            yield _added(call)
        if piece.arguments:
            call.arguments += piece.arguments
            yield {
                "type": "response.function_call_arguments.delta",
                "output_index": call.index,
                "item_id": call.id,
                "delta": piece.arguments,
            }


def _added(item: Message | Call) -> ItemEvent:
    return {"type": "response.output_item.added", "output_index": item.index, "item": item.item("in_progress")}


def _piece(call: ToolCall | ToolCallDelta, position: int) -> ToolCallDelta:
    """Returns the call as a piece; a complete call is one as well."""
    return ToolCallDelta(position, call.id, call.name, call.arguments) if isinstance(call, ToolCall) else call
