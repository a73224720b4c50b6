"""What an evaluation draws and scores, anew, for each held-out prompt."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import structlog

from bonbon.draws import Draws, collect
from bonbon.engines.base import DrawRequest, Engine, Sampling
from bonbon.errors import EngineError, PromptTooLong
from bonbon.prompt import Prompt
from bonbon.rewards.base import Reward
from bonbon.rewards.scoring import score_texts
from bonbon.theory import win_fraction

log = structlog.get_logger(__name__)

REWARD_SECONDS = 600.0
"""Longest wait for one prompt's scores: nobody waits for an answer here."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One draw: its tokens (the end-of-sequence token included), whether it was cut off, and its scores."""

    tokens: tuple[int, ...]
    truncated: bool
    reward: float
    held_out: float | None = None


Judge = Callable[[Scored], float]


def by_reward(draw: Scored) -> float:
    return draw.reward


def by_held_out(draw: Scored) -> float:
    """The held-out reward's score; not to be called when there is none."""
    assert draw.held_out is not None
    return draw.held_out


@dataclass(frozen=True, slots=True)
class Samples:
    """One prompt's draws: answers of the version, two groups of n of the base, n of the reference (if it is another).

    `best[i]` is the draw of `groups[i]` that the reward puts first, a tie broken at random. It is compared with the
    other group: within its own, the win rate would be (n - 1/2) / n whatever was drawn.
    """

    prompt: tuple[int, ...]
    answers: Sequence[Scored]
    groups: tuple[Sequence[Scored], Sequence[Scored]]
    best: tuple[Scored, Scored]
    reference: Sequence[Scored]

    @property
    def base(self) -> list[Scored]:
        return [*self.groups[0], *self.groups[1]]

    def best_of_n_wins(self, judge: Judge) -> float:
        """Share of best-of-n's comparisons with independent draws of the base that it wins."""
        return (wins(self.best[:1], self.groups[1], judge) + wins(self.best[1:], self.groups[0], judge)) / 2


def wins(ours: Sequence[Scored], theirs: Sequence[Scored], judge: Judge) -> float:
    """Share of all pairs that ours win, ties as half."""
    return win_fraction([judge(one) for one in ours], [judge(one) for one in theirs])


def choose(prompts: Iterable[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` different prompts, or all when there are fewer; the same ones in the same order for the same seed."""
    different = {prompt.digest: prompt for prompt in prompts}
    order = sorted(different, key=lambda digest: sha256(f"{seed}/{digest}".encode()).digest())
    return [different[digest] for digest in order[:count]]


class Sampler:
    """Draws and scores what one prompt is measured with.

    Args:
        engine: has all versions loaded.
        version: the version that is measured.
        reference: what it was trained from, None when that was the base.
        n: of best-of-n.
        answers: draws of the version per prompt.
        sampling: its own seed is not used.
        seed: decides every draw, as far as the engine allows.
    """

    def __init__(
        self,
        engine: Engine,
        reward: Reward,
        held_out_reward: Reward | None,
        *,
        version: str,
        reference: str | None,
        n: int,
        answers: int,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self._engine, self._version, self._reference = engine, version, reference
        self._reward, self._held_out = reward, held_out_reward
        self._n, self._answers, self._sampling, self._seed = n, answers, sampling, seed

    async def __call__(self, prompt: Prompt) -> Samples | None:
        """The prompt's samples; None when prompt and max_tokens do not fit the context."""
        n, answers = self._n, self._answers
        try:
            drawn = [
                await self._draw(prompt, self._version, answers, "version"),
                await self._draw(prompt, self._engine.base, 2 * n, "base"),
            ]
        except PromptTooLong as error:
            log.warning("held-out prompt left out", reason=str(error))
            return None
        if self._reference is not None:
            drawn.append(await self._draw(prompt, self._reference, n, "reference"))
        scored = await self._score(prompt, drawn)
        groups = scored[answers : answers + n], scored[answers + n : answers + 2 * n]
        rng = random.Random(self._seed_of(prompt, "ties"))
        first, second = (max(group, key=lambda draw: (draw.reward, rng.random())) for group in groups)
        return Samples(
            prompt=drawn[0].prompt.token_ids,
            answers=scored[:answers],
            groups=groups,
            best=(first, second),
            reference=scored[answers + 2 * n :],
        )

    async def _draw(self, prompt: Prompt, version: str, count: int, role: str) -> Draws:
        # A seed for each role: with one seed, draws of different versions are not independent.
        sampling = replace(self._sampling, seed=self._seed_of(prompt, role))
        draws = await collect(self._engine, DrawRequest(prompt, version, count, sampling))
        if any(draw.finish_reason not in ("stop", "length") for draw in draws.draws):
            raise EngineError(f"the engine did not finish its draws of {version}; see its log")
        return draws

    async def _score(self, prompt: Prompt, drawn: list[Draws]) -> list[Scored]:
        draws = [draw for draws in drawn for draw in draws.draws]
        texts = [draw.written for draw in draws]
        rewards = await score_texts(self._reward, prompt, texts, deadline=REWARD_SECONDS)
        held_out: list[float] | list[None] = (
            await score_texts(self._held_out, prompt, texts, deadline=REWARD_SECONDS)
            if self._held_out
            else [None] * len(texts)
        )
        return [
            Scored(tuple(draw.token_ids), draw.finish_reason == "length", reward, other)
            for draw, reward, other in zip(draws, rewards, held_out, strict=True)
        ]

    def _seed_of(self, prompt: Prompt, role: str) -> int:
        return int.from_bytes(sha256(f"{self._seed}/{role}/{prompt.digest}".encode()).digest()[:4], "big")
