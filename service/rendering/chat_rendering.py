"""Writes chat completions."""

from collections.abc import Sequence
from typing import Any

from bonbon.engines.candidates import Draw
from bonbon.engines.engine import Delta
from bonbon.pairs.group_records import Candidate
from bonbon.tools import ToolCall, ToolCallDelta
from service.answering.completion_request import CompletionRequest
from service.rendering.choices import ChoicesRendering
from service.rendering.logprobs import chat_logprobs
from service.routing.router import Route


class ChatRendering(ChoicesRendering):
    """The answer of POST /v1/chat/completions.

    Args:
        parallel: Whether a choice may contain more than one tool call.
    """

    prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, completion_request: CompletionRequest, route: Route, *, parallel: bool, **options: bool) -> None:
        super().__init__(completion_request, route, **options)
        self.parallel = parallel

    def choice(self, index: int, prompt: str, candidate: Candidate, draw: Draw) -> dict[str, Any]:
        return {
            "index": index,
            "message": self._message(draw),
            "logprobs": self._logprobs(draw),
            "finish_reason": _finish(draw),
        }

    def opening(self, index: int, prompt: str) -> dict[str, Any]:
        return _part(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, index: int, drawn: Draw | Delta) -> dict[str, Any]:
        calls = [call for call in _called_in(drawn) if self.parallel or call["index"] == 0]
        content = {"content": drawn.text} if drawn.text or not calls else {}
        return _part(index, content | ({"tool_calls": calls} if calls else {}), logprobs=self._logprobs(drawn))

    def ending(self, index: int, draw: Draw) -> dict[str, Any]:
        return _part(index, {}, finish_reason=_finish(draw))

    def _message(self, draw: Draw) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": draw.text, "refusal": None}
        if draw.tool_calls:
            calls = draw.tool_calls if self.parallel else draw.tool_calls[:1]
            message |= {"content": draw.text or None, "tool_calls": [call.to_dict() for call in calls]}
        return message

    def _logprobs(self, drawn: Draw | Delta) -> dict[str, Any] | None:
        return chat_logprobs(drawn) if self.logprobs else None


def _finish(draw: Draw) -> str | None:
    return "tool_calls" if draw.tool_calls and draw.finish_reason == "stop" else draw.finish_reason


def _called_in(drawn: Draw | Delta) -> list[dict[str, Any]]:
    found: Sequence[ToolCall | ToolCallDelta] = drawn.tool_calls
    return [_called(call, position) for position, call in enumerate(found)]


def _called(call: ToolCall | ToolCallDelta, position: int) -> dict[str, Any]:
    """Returns a tool call for a chunk: a complete call, or its next piece; only the first piece has an id and a
    name."""
    if isinstance(call, ToolCall):
        return {"index": position, **call.to_dict()}
    if call.name:
        return {"index": call.index, **ToolCall(call.id, call.name, call.arguments).to_dict()}
    return {"index": call.index, "function": {"arguments": call.arguments}}


def _part(
    index: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
