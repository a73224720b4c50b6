"""What the answers of all endpoints have in common."""

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
    """One request's answer: a whole body, or server-sent events.

    A single draw is written as it grows; what best-of-n has chosen is written when it has been chosen. Either way the
    last event of an answer waits for the durable group.

    Args:
        logprobs: whether to write log-probabilities.
        candidates: whether to describe every candidate in the `bonbon` object.
    """

    prefix: ClassVar[str]

    def __init__(self, ask: CompletionRequest, plan: Route, *, logprobs: bool, candidates: bool) -> None:
        self.ask, self.plan, self.logprobs, self.candidates = ask, plan, logprobs, candidates
        self.id, self.created = f"{self.prefix}{time_ordered_id()}", int(time.time())
        self.prompt_logprobs: dict[int, PromptLogprobs] = {}
        self.started: dict[int, Started] = {}
        self.answers: dict[int, Answer] = {}
        self.has_text = False

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The body, once every prompt is answered."""

    @abstractmethod
    def events(self, prompt: int, event: Event) -> Iterator[bytes]:
        """What to send for what has happened to a prompt."""

    @abstractmethod
    def end(self) -> bytes:
        """What to send after everything else."""

    @abstractmethod
    def failure(self, problem: Problem) -> bytes:
        """What to send in place of the rest when the answer fails."""

    def note(self, prompt: int, event: Event) -> None:
        """Take in what has happened to a prompt."""
        if isinstance(event, PromptLogprobs):
            self.prompt_logprobs[prompt] = event
        elif isinstance(event, Started):
            self.started[prompt] = event
        elif isinstance(event, Answer):
            self.answers[prompt] = event

    @property
    def tokens_drawn(self) -> int:
        """Of all candidates, of the prompts that are answered."""
        return sum(answer.group.drawn_tokens for answer in self.answers.values())

    @property
    def tokens_read(self) -> int:
        """Of the prompts that are answered."""
        return sum(len(answer.group.prompt_token_ids) for answer in self.answers.values())

    @property
    def tokens_written(self) -> int:
        """Of the choices that are returned."""
        groups = [answer.group for answer in self.answers.values()]
        return sum(len(candidate.token_ids) for group in groups for candidate in group.served)

    def _served(self, prompt: int) -> Iterator[tuple[int, Candidate, Draw]]:
        answer = self.answers[prompt]
        for index, candidate in enumerate(answer.group.served, start=prompt * self.ask.n):
            yield index, candidate, answer.draws[candidate.index]

    def _extension(self) -> dict[str, Any]:
        answers = [self.answers[prompt] for prompt in sorted(self.answers)]
        return extension(answers, stored=self.ask.store, candidates=self.candidates)
