"""What the answers of both endpoints have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from bonbon.best_of_n import Answer
from bonbon.draws import Draw
from bonbon.engines.base import Delta, PromptLogprobs, Started
from bonbon.ids import time_ordered_id
from bonbon.pairs.records import Candidate
from service.answering import Event
from service.ask import Ask
from service.rendering.extension import extension
from service.serving import Plan


class Rendering(ABC):
    """One request's answer, whole or in chunks.

    Choice j of prompt i has index i * n + j. A single draw is written as it grows; best-of-n choices are written when
    they have been chosen. Either way a choice's last chunk, with its finish reason, waits for the durable group.

    Args:
        logprobs: whether to write log-probabilities.
        candidates: whether to describe every candidate in the `bonbon` object.
        include_usage: whether the chunks have a `usage`, set in a last one without choices.
    """

    prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, ask: Ask, plan: Plan, *, logprobs: bool, candidates: bool, include_usage: bool) -> None:
        self.ask, self.plan = ask, plan
        self.logprobs, self.candidates, self.include_usage = logprobs, candidates, include_usage
        self.id, self.created = f"{self.prefix}-{time_ordered_id()}", int(time.time())
        self.scored: dict[int, PromptLogprobs] = {}
        self.started: dict[int, Started] = {}
        self.answers: dict[int, Answer] = {}
        self.has_text = False

    @abstractmethod
    def choice(self, index: int, prompt: str, candidate: Candidate, draw: Draw) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def opening(self, index: int, prompt: str) -> dict[str, Any] | None:
        """The first part of a choice, before any of its text; None where there is none."""

    @abstractmethod
    def piece(self, index: int, drawn: Draw | Delta) -> dict[str, Any]:
        """The next part of a choice."""

    @abstractmethod
    def ending(self, index: int, draw: Draw) -> dict[str, Any]:
        """The last part of a choice."""

    def note(self, prompt: int, event: Event) -> None:
        """Take in what has happened to a prompt."""
        if isinstance(event, PromptLogprobs):
            self.scored[prompt] = event
        elif isinstance(event, Started):
            self.started[prompt] = event
        elif isinstance(event, Answer):
            self.answers[prompt] = event

    @property
    def tokens_drawn(self) -> int:
        """Of all candidates, of the prompts that are answered."""
        return sum(answer.group.drawn_tokens for answer in self.answers.values())

    def whole(self) -> dict[str, Any]:
        """The body, once every prompt is answered."""
        choices = [
            self.choice(index, self.started[prompt].text, candidate, draw)
            for prompt in sorted(self.answers)
            for index, candidate, draw in self._served(prompt)
        ]
        return self._head(self.object) | {"choices": choices, "usage": self._usage(), "bonbon": self._extension()}

    def chunks(self, prompt: int, event: Event) -> Iterator[dict[str, Any]]:
        """What to send for an event."""
        self.note(prompt, event)
        if isinstance(event, Answer):
            yield from self._chosen(prompt)
        elif isinstance(event, PromptLogprobs) or self.plan.best_of > 1:
            return
        elif isinstance(event, Started):
            yield from self._opened(prompt, event.text)
        elif event.text or event.tool_calls or (self.logprobs and event.tokens):
            self.has_text = True
            yield self._chunk(self.piece(prompt, event))

    def usage_chunks(self) -> Iterator[dict[str, Any]]:
        """What to send after all choices."""
        if self.include_usage:
            yield self._head(self.chunk_object) | {"choices": [], "usage": self._usage()}

    def _chosen(self, prompt: int) -> Iterator[dict[str, Any]]:
        self.has_text = True
        for position, (index, _, draw) in enumerate(self._served(prompt), start=1):
            if self.plan.best_of > 1:
                yield from self._opened(index, self.started[prompt].text)
                yield self._chunk(self.piece(index, draw))
            last = self._chunk(self.ending(index, draw))
            if position == self.ask.n and len(self.answers) == len(self.ask.prompts):
                last["bonbon"] = self._extension()
            yield last

    def _opened(self, index: int, prompt: str) -> Iterator[dict[str, Any]]:
        opening = self.opening(index, prompt)
        if opening is not None:
            yield self._chunk(opening)

    def _served(self, prompt: int) -> Iterator[tuple[int, Candidate, Draw]]:
        answer = self.answers[prompt]
        for index, candidate in enumerate(answer.group.served, start=prompt * self.ask.n):
            yield index, candidate, answer.draws[candidate.index]

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.include_usage else {}
        return self._head(self.chunk_object) | {"choices": [choice]} | usage

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.plan.model,
            "system_fingerprint": None,
        }

    def _usage(self) -> dict[str, Any]:
        groups = [answer.group for answer in self.answers.values()]
        read = sum(len(group.prompt_token_ids) for group in groups)
        written = sum(len(candidate.token_ids) for group in groups for candidate in group.served)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def _extension(self) -> dict[str, Any]:
        answers = [self.answers[prompt] for prompt in sorted(self.answers)]
        return extension(answers, stored=self.ask.store, candidates=self.candidates)
