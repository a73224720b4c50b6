"""Chat completions."""

from typing import Any

from bonbon.draws import Draw
from bonbon.engines.base import Delta
from bonbon.pairs.records import Candidate
from service.rendering.base import Rendering
from service.rendering.logprobs import chat_logprobs


class ChatRendering(Rendering):
    """POST /v1/chat/completions."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choice(self, index: int, prompt: str, candidate: Candidate, draw: Draw) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": candidate.text, "refusal": None},
            "logprobs": self._logprobs(draw),
            "finish_reason": candidate.finish_reason,
        }

    def opening(self, index: int, prompt: str) -> dict[str, Any]:
        return _part(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, index: int, text: str, drawn: Draw | Delta) -> dict[str, Any]:
        return _part(index, {"content": text}, logprobs=self._logprobs(drawn))

    def ending(self, index: int, finish_reason: str) -> dict[str, Any]:
        return _part(index, {}, finish_reason=finish_reason)

    def _logprobs(self, drawn: Draw | Delta) -> dict[str, Any] | None:
        return chat_logprobs(drawn) if self.logprobs else None


def _part(
    index: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
