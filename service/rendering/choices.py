"""The common parts of chat and text completions, whose answers are lists of choices."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from bonbon.best_of_n import Answer
from bonbon.engines.candidates import Draw
from bonbon.engines.engine import Delta, PromptLogprobs, Started
from bonbon.pairs.group_records import Candidate
from service.answering import sse
from service.answering.answering import Event
from service.answering.completion_request import CompletionRequest
from service.errors import Problem
from service.rendering.renderer import Rendering
from service.routing.router import Route


class ChoicesRendering(Rendering):
    """An answer with choices. Choice j of prompt i has index i * n + j; each chunk of a stream contains a piece of one
    choice.

    Args:
        include_usage: Whether chunks have a `usage` field, which is set in a last chunk without choices.
    """

    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(
        self, completion_request: CompletionRequest, route: Route, *, include_usage: bool, **options: bool
    ) -> None:
        super().__init__(completion_request, route, **options)
        self.include_usage = include_usage

    @abstractmethod
    def choice(self, index: int, prompt: str, candidate: Candidate, draw: Draw) -> dict[str, Any]:
        """Returns a complete choice."""

    @abstractmethod
    def opening(self, index: int, prompt: str) -> dict[str, Any] | None:
        """Returns the first part of a choice, before its text, or None if there is none."""

    @abstractmethod
    def piece(self, index: int, drawn: Draw | Delta) -> dict[str, Any]:
        """Returns the next part of a choice."""

    @abstractmethod
    def ending(self, index: int, draw: Draw) -> dict[str, Any]:
        """Returns the last part of a choice."""

    def whole(self) -> dict[str, Any]:
        choices = [
            self.choice(index, self.started[prompt].text, candidate, draw)
            for prompt in sorted(self.answers)
            for index, candidate, draw in self._served(prompt)
        ]
        return self._head(self.object) | {"choices": choices, "usage": self._usage(), "bonbon": self._extension()}

    def events(self, prompt: int, event: Event) -> Iterator[bytes]:
        return map(sse.data, self._chunks(prompt, event))

    def end(self) -> bytes:
        usage = {"choices": [], "usage": self._usage()} if self.include_usage else None
        return (sse.data(self._head(self.chunk_object) | usage) if usage else b"") + sse.DONE

    def failure(self, problem: Problem) -> bytes:
        return sse.data(problem.envelope)

    def _chunks(self, prompt: int, event: Event) -> Iterator[dict[str, Any]]:
        self.note(prompt, event)
        if isinstance(event, Answer):
            yield from self._chosen(prompt)
        elif isinstance(event, PromptLogprobs) or self.route.best_of > 1:
            return
        elif isinstance(event, Started):
            yield from self._opened(prompt, event.text)
        elif event.text or event.tool_calls or (self.logprobs and event.tokens):
            self.has_text = True
            yield self._chunk(self.piece(prompt, event))

    def _chosen(self, prompt: int) -> Iterator[dict[str, Any]]:
        self.has_text = True
        for position, (index, _, draw) in enumerate(self._served(prompt), start=1):
            if self.route.best_of > 1:
                yield from self._opened(index, self.started[prompt].text)
                yield self._chunk(self.piece(index, draw))
            last = self._chunk(self.ending(index, draw))
            if position == self.completion_request.n and len(self.answers) == len(self.completion_request.prompts):
                last["bonbon"] = self._extension()
            yield last

    def _opened(self, index: int, prompt: str) -> Iterator[dict[str, Any]]:
        opening = self.opening(index, prompt)
        if opening is not None:
            yield self._chunk(opening)

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.include_usage else {}
        return self._head(self.chunk_object) | {"choices": [choice]} | usage

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.route.model,
            "system_fingerprint": None,
        }

    def _usage(self) -> dict[str, Any]:
        read, written = self.tokens_read, self.tokens_written
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
