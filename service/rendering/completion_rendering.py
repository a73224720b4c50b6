"""Writes text completions."""

from collections import defaultdict
from typing import Any

from bonbon.engines.candidates import Draw
from bonbon.engines.engine import Delta
from bonbon.pairs.group_records import Candidate
from service.answering.completion_request import CompletionRequest
from service.rendering.choices import ChoicesRendering
from service.rendering.logprobs import TextOffsets, completion_logprobs
from service.routing.router import Route


class CompletionRendering(ChoicesRendering):
    """The answer of POST /v1/completions.

    Args:
        echo: Whether each choice's text begins with the prompt.
    """

    prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, completion_request: CompletionRequest, route: Route, *, echo: bool, **options: bool) -> None:
        super().__init__(completion_request, route, **options)
        self.echo = echo
        self._offsets: defaultdict[int, TextOffsets] = defaultdict(TextOffsets)

    def choice(self, index: int, prompt: str, candidate: Candidate, draw: Draw) -> dict[str, Any]:
        if not self.echo:
            return _part(index, candidate.text, self._logprobs(index, draw), candidate.finish_reason)
        before, after = self._prompt_logprobs(index), self._logprobs(index, draw)
        logprobs = None if before is None or after is None else {name: before[name] + after[name] for name in before}
        return _part(index, prompt + candidate.text, logprobs, candidate.finish_reason)

    def opening(self, index: int, prompt: str) -> dict[str, Any] | None:
        return _part(index, prompt, self._prompt_logprobs(index)) if self.echo else None

    def piece(self, index: int, drawn: Draw | Delta) -> dict[str, Any]:
        return _part(index, drawn.text, self._logprobs(index, drawn))

    def ending(self, index: int, draw: Draw) -> dict[str, Any]:
        return _part(index, "", finish_reason=draw.finish_reason)

    def _logprobs(self, index: int, drawn: Draw | Delta) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return completion_logprobs(drawn, self._offsets[index])

    def _prompt_logprobs(self, index: int) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return completion_logprobs(self.prompt_logprobs[index // self.completion_request.n], self._offsets[index])


def _part(
    index: int, text: str, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
