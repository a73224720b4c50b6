"""Draws and scores fresh candidates for each test prompt of an evaluation."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import structlog

from bonbon.engines.candidates import Draws, collect
from bonbon.engines.engine import DrawRequest, Engine
from bonbon.errors import EngineError, PromptTooLong
from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward
from bonbon.rewards.scoring import OFFLINE_DEADLINE, score_texts
from trainer.data.logged_prompts import LoggedPrompt

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Scored:
    """One scored draw: its tokens (with the end-of-sequence token), whether it was truncated, and its scores."""

    tokens: tuple[int, ...]
    truncated: bool
    reward: float
    held_out: float | None = None


Judge = Callable[[Scored], float]


def by_reward(draw: Scored) -> float:
    return draw.reward


def by_held_out(draw: Scored) -> float:
    """Returns the score of the held-out reward. Must not be called when there is none."""
    assert draw.held_out is not None
    return draw.held_out


@dataclass(frozen=True, slots=True)
class Samples:
    """The draws of one prompt, each list sorted by reward, lowest first, with ties broken at random.

    `version` holds draws of the measured version, `base` draws of the base, and `served` draws of the version that
    answers requests during the evaluation, which are the base's own when best-of-n of the base answers.
    """

    prompt: tuple[int, ...]
    temperature: float
    version: Sequence[Scored]
    base: Sequence[Scored]
    served: Sequence[Scored]


def choose(prompts: Iterable[LoggedPrompt], count: int, seed: int) -> list[LoggedPrompt]:
    """Returns `count` distinct prompts, or all when there are fewer. The same seed gives the same prompts and order.

    A prompt that was logged with several sampling settings is measured with the latest.
    """
    different = {one.prompt.digest: one for one in prompts}
    order = sorted(different, key=lambda digest: sha256(f"{seed}/{digest}".encode()).digest())
    return [different[digest] for digest in order[:count]]


class Sampler:
    """Draws and scores the candidates that one prompt is measured with.

    Args:
        engine: Has all versions loaded.
        version: The measured version, drawn `draws` times per prompt.
        served: The version that answers requests, drawn `served_draws` times per prompt; None for the base.
        base_draws: Draws of the base per prompt.
        seed: Determines every draw, as far as the engine allows.
    """

    def __init__(
        self,
        engine: Engine,
        reward: Reward,
        held_out_reward: Reward | None,
        *,
        version: str,
        served: str | None,
        draws: int,
        served_draws: int,
        base_draws: int,
        seed: int,
    ) -> None:
        self._engine, self._version, self._served = engine, version, served
        self._reward, self._held_out = reward, held_out_reward
        self._draws, self._served_draws, self._base_draws, self._seed = draws, served_draws, base_draws, seed

    async def __call__(self, asked: LoggedPrompt) -> Samples | None:
        """Returns the samples of a prompt, or None when prompt and max_tokens exceed the context."""
        try:
            drawn = [
                await self._draw(asked, self._version, self._draws, "version"),
                await self._draw(asked, self._engine.base, self._base_draws, "base"),
            ]
        except PromptTooLong as error:
            log.warning("test prompt skipped", reason=str(error))
            return None
        if self._served is not None:
            drawn.append(await self._draw(asked, self._served, self._served_draws, "served"))
        scored = [self._ranked(asked.prompt, some) for some in await self._score(drawn)]
        return Samples(
            prompt=drawn[0].prompt.token_ids,
            temperature=asked.sampling.temperature,
            version=scored[0],
            base=scored[1],
            served=scored[-1],
        )

    async def _draw(self, asked: LoggedPrompt, version: str, count: int, role: str) -> Draws:
        # Each role gets its own seed, because draws of different versions with the same seed are not independent.
        sampling = replace(asked.sampling, seed=self._seed_of(asked.prompt, role))
        draws = await collect(self._engine, DrawRequest(asked.prompt, version, count, sampling))
        if any(draw.finish_reason not in ("stop", "length") for draw in draws.draws):
            raise EngineError(f"the engine did not finish its draws of {version}; see its log")
        return draws

    async def _score(self, drawn: list[Draws]) -> list[list[Scored]]:
        # All in one call, because the scores of some rewards are comparable only within a call.
        prompt, texts = drawn[0].readable, [draw.written for draws in drawn for draw in draws.draws]
        rewards = await score_texts(self._reward, prompt, texts, deadline=OFFLINE_DEADLINE)
        held_out: list[float] | list[None] = (
            await score_texts(self._held_out, prompt, texts, deadline=OFFLINE_DEADLINE)
            if self._held_out
            else [None] * len(texts)
        )
        scores = zip(rewards, held_out, strict=True)
        return [
            [Scored(tuple(draw.token_ids), draw.finish_reason == "length", *next(scores)) for draw in draws.draws]
            for draws in drawn
        ]

    def _ranked(self, prompt: Prompt, scored: list[Scored]) -> list[Scored]:
        rng = random.Random(self._seed_of(prompt, "ties"))
        return sorted(scored, key=lambda draw: (draw.reward, rng.random()))

    def _seed_of(self, prompt: Prompt, role: str) -> int:
        return int.from_bytes(sha256(f"{self._seed}/{role}/{prompt.digest}".encode()).digest()[:4], "big")
