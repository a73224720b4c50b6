"""Best-of-n sampling: sample candidates, score them, rank them, and pick the best."""

import math
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import structlog

from bonbon.engines.candidates import Draw, Draws, start_drawing
from bonbon.engines.engine import Delta, DrawRequest, Engine, Sampling, Started
from bonbon.errors import RewardError, RewardNotStarted
from bonbon.ids import time_ordered_id
from bonbon.observability.tracing import Key, Name, Value, span
from bonbon.pairs.group_records import Candidate, Group
from bonbon.pairs.ranking import rank, why_unclean
from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward
from bonbon.rewards.scoring import score_texts

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A scored group, and its candidates in the same order with every token's log-probability.

    `failure` is the error that kept the reward from ranking the group, if there was one.
    """

    group: Group
    draws: tuple[Draw, ...]
    failure: RewardError | None = None

    @property
    def text(self) -> str:
        """Returns the text of the best candidate."""
        return self.group.served[0].text


class BestOfN:
    """Answers a prompt with the best of n candidates.

    `async with` starts the engine and the reward, and stops them at its end. Without it, start both first.

    Args:
        engine: The engine that samples the candidates.
        reward: The reward that scores them.
        deadline: The seconds that the reward may take. When it takes longer, the answer is the first candidate, and the
            group is marked as degraded.
    """

    def __init__(self, engine: Engine, reward: Reward, *, deadline: float = 30.0) -> None:
        self.engine, self.reward, self.deadline = engine, reward, deadline

    async def __aenter__(self) -> Self:
        """Raises UserError where engine or reward cannot be started; then neither is."""
        async with AsyncExitStack() as stack:
            for part in (self.engine, self.reward):
                await part.start()
                stack.push_async_callback(part.stop)
            self._started = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._started.aclose()

    async def __call__(
        self,
        prompt: Prompt,
        n: int = 8,
        *,
        version: str | None = None,
        sampling: Sampling = Sampling(),
        keep: int = 1,
        salt: str = "",
    ) -> Answer:
        """Samples `n` candidates from `version` (default: the base), ranks them, and marks the `keep` best as served.

        Raises what `Engine.draw` raises, and RewardNotStarted. A reward that fails in another way raises nothing: it
        degrades the group.
        """
        request = DrawRequest(prompt, version or self.engine.base, n, sampling, salt=salt)
        async with aclosing(self.stream(request, keep=keep)) as events:
            (answer,) = [event async for event in events if isinstance(event, Answer)]
        return answer

    async def stream(
        self, request: DrawRequest, *, keep: int = 1, fit: bool = False
    ) -> AsyncGenerator[Started | Delta | Answer]:
        """Yields `Started`, the deltas of the candidates, and at the end the `Answer`, with the `keep` best as served.

        Raises what a call raises. Closing the generator aborts all candidates.

        Args:
            fit: Whether max_tokens may be reduced to the free space in the context. The answer's group has the sampling
                parameters that were used.
        """
        with span(Name.DRAW, **_attributes(request)) as drawing:
            draws, following = await start_drawing(self.engine, request, fit=fit)
            drawing.set_attribute(Key.INPUT_TOKENS, len(draws.prompt.token_ids))
            async with aclosing(following):
                yield draws.prompt
                async for delta in following:
                    draws.add(delta)
                    yield delta
            drawing.set_attribute(Key.OUTPUT_TOKENS, draws.token_count)
        yield await self.rank(draws, keep=keep)

    async def rank(self, draws: Draws, *, keep: int = 1) -> Answer:
        """Scores and ranks sampled candidates, and marks the `keep` best as served.

        A single candidate is not scored, because there is nothing to choose from.
        """
        request = draws.request
        candidates = tuple(_candidate(draw) for draw in draws.draws)
        failure: RewardError | None = None
        if len(candidates) > 1:
            try:
                rewards = await self.score(draws.readable, [candidate.text for candidate in candidates])
                candidates = rank(candidates, rewards, random.Random(request.sampling.seed))
            except RewardNotStarted:
                raise
            except RewardError as error:
                # The traceback refers to this frame, which refers to the error: a cycle.
                failure = error.with_traceback(None)
                log.warning(
                    "the reward failed; answering with the first candidate",
                    reward=self.reward.name,
                    error=str(error),
                )
        kept = {c.index for c in sorted(candidates, key=lambda c: -(c.rank or 0))[:keep]}
        group = Group(
            id=time_ordered_id(),
            time=datetime.now(UTC),
            prompt=request.prompt,
            prompt_token_ids=draws.prompt.token_ids,
            version=request.version,
            sampling=request.sampling,
            reward_name=self.reward.name,
            reward_version=self.reward.version,
            candidates=tuple(replace(c, served=c.index in kept) for c in candidates),
            degraded=None if failure is None else str(failure),
        )
        return Answer(replace(group, unclean=why_unclean(group)), tuple(draws.draws), failure)

    async def score(self, prompt: Prompt, texts: list[str]) -> list[float]:
        """Returns one finite reward per text; see `score_texts`."""
        with span(Name.SCORE, REWARD=self.reward.name, CANDIDATES=len(texts)):
            return await score_texts(self.reward, prompt, texts, deadline=self.deadline)


def _candidate(draw: Draw) -> Candidate:
    return Candidate(
        draw.index, draw.written, tuple(draw.token_ids), math.fsum(draw.logprobs), draw.finish_reason or "abort"
    )


def _attributes(request: DrawRequest) -> dict[str, Value]:
    return {
        "OPERATION": "text_completion" if request.prompt.messages is None else "chat",
        "PROVIDER": "bonbon",
        "MODEL": request.version,
        "CHOICES": request.n,
        "MAX_TOKENS": request.sampling.max_tokens,
        "TEMPERATURE": request.sampling.temperature,
    }
