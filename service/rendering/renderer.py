"""The common parts of the answers of all endpoints."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from bonbon.best_of_n import Answer
from bonbon.engines.candidates import Draw
from bonbon.engines.engine import PromptLogprobs, Started
from bonbon.ids import time_ordered_id
from bonbon.pairs.group_records import Candidate
from service.answering.answering import Event
from service.answering.completion_request import CompletionRequest
from service.errors import Problem
from service.rendering.extension import extension
from service.routing.router import Route


class Rendering(ABC):
    """The answer to one request: a complete body, or server-sent events.

    A single candidate is written as it grows; the result of best-of-n is written when it has been chosen. Either way,
    the last event of an answer waits until the group is durable.

    Args:
        logprobs: Whether to write log-probabilities.
        candidates: Whether to describe every candidate in the `bonbon` object.
    """

    prefix: ClassVar[str]

    def __init__(
        self, completion_request: CompletionRequest, route: Route, *, logprobs: bool, candidates: bool
    ) -> None:
        self.completion_request, self.route, self.logprobs, self.candidates = (
            completion_request,
            route,
            logprobs,
            candidates,
        )
        self.id, self.created = f"{self.prefix}{time_ordered_id()}", int(time.time())
        self.prompt_logprobs: dict[int, PromptLogprobs] = {}
        self.started: dict[int, Started] = {}
        self.answers: dict[int, Answer] = {}
        self.has_text = False

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """Returns the body, once every prompt is answered."""

    @abstractmethod
    def events(self, prompt: int, event: Event) -> Iterator[bytes]:
        """Returns what to send for an event of a prompt."""

    @abstractmethod
    def end(self) -> bytes:
        """Returns what to send at the end."""

    @abstractmethod
    def failure(self, problem: Problem) -> bytes:
        """Returns what to send instead of the rest if the answer fails."""

    def note(self, prompt: int, event: Event) -> None:
        """Records an event of a prompt."""
        if isinstance(event, PromptLogprobs):
            self.prompt_logprobs[prompt] = event
        elif isinstance(event, Started):
            self.started[prompt] = event
        elif isinstance(event, Answer):
            self.answers[prompt] = event

    @property
    def tokens_drawn(self) -> int:
        """Tokens of all candidates of the answered prompts."""
        return sum(answer.group.drawn_tokens for answer in self.answers.values())

    @property
    def tokens_read(self) -> int:
        """Tokens of the answered prompts."""
        return sum(len(answer.group.prompt_token_ids) for answer in self.answers.values())

    @property
    def tokens_written(self) -> int:
        """Tokens of the returned choices."""
        groups = [answer.group for answer in self.answers.values()]
        return sum(len(candidate.token_ids) for group in groups for candidate in group.served)

    def _served(self, prompt: int) -> Iterator[tuple[int, Candidate, Draw]]:
        answer = self.answers[prompt]
        for index, candidate in enumerate(answer.group.served, start=prompt * self.completion_request.n):
            yield index, candidate, answer.draws[candidate.index]

    def _extension(self) -> dict[str, Any]:
        answers = [self.answers[prompt] for prompt in sorted(self.answers)]
        return extension(answers, stored=self.completion_request.store, candidates=self.candidates)
