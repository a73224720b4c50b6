"""Measures a policy's quality and cost from outside, over HTTP."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from bonbon.demo.traffic import Reply, Timing, Traffic
from bonbon.prompt import Prompt
from bonbon.rewards.reward import Reward
from bonbon.theory import Estimate, clustered_mean, win_fraction


@dataclass(frozen=True, slots=True)
class Figures:
    """One column of the final table. Lengths are in tokens, times in seconds, KL in nats.

    A policy answers with the best of `k` draws. `win_rate` is against one draw of the base, `win_rate_best_of_n`
    against best-of-n of the base, and `saved_share` is the share of best-of-n's tokens that an answer saves. The last
    two are None if best-of-n was not measured before, and `kl` is None if it was not estimated.
    """

    version: str
    k: float
    win_rate: float
    win_rate_low: float
    win_rate_high: float
    comparisons: int
    win_rate_best_of_n: float | None
    win_rate_best_of_n_low: float | None
    win_rate_best_of_n_high: float | None
    kl: float | None
    kl_estimator: str
    reward_mean: float
    length_mean: float
    tokens_per_answer: float
    saved_share: float | None
    latency_p50_s: float
    ttft_p50_s: float


@dataclass(slots=True)
class Yardstick:
    """The opponents of every policy: draws of the base and, once measured, answers of best-of-n.

    `rewards` and `best_of_n` hold a list of rewards per request; `best_of_n_tokens` is the tokens per answer of
    best-of-n.
    """

    requests: list[str]
    rewards: list[list[float]]
    best_of_n: list[list[float]] = field(default_factory=list)
    best_of_n_tokens: float | None = None

    @classmethod
    async def draw(
        cls, traffic: Traffic, reward: Reward, requests: list[str], n: int, *, seed: int, done: Callable[[], None]
    ) -> "Yardstick":
        """Takes `n` independent draws of the base per request."""
        replies = await traffic.ask_all(
            requests, model="base", seed=seed, done=done, n=n, extra_body={"best_of": n}, store=False
        )
        return cls(requests, [await _score(reward, reply) for reply in replies])

    async def measure(
        self,
        traffic: Traffic,
        reward: Reward,
        *,
        model: str,
        best_of: int,
        kl: float | None,
        kl_estimator: str,
        seed: int,
        answers: int,
        streams: int,
        done: Callable[[], None],
        is_best_of_n: bool = False,
    ) -> tuple[Figures, list[Reply]]:
        """Returns the figures of the best of `best_of` draws of `model`.

        Args:
            answers: Answers per request.
            streams: Number of answers that are streamed to measure times.
            is_best_of_n: Whether this is best-of-n of the base, with which later policies are compared.
        """
        options: dict[str, Any] = {"extra_body": {"best_of": best_of}}
        timings: list[Timing] = [
            await traffic.stream(self.requests[i % len(self.requests)], model=model, seed=seed + i, **options)
            for i in range(streams)
        ]
        replies = await traffic.ask_all(
            self.requests * answers, model=model, seed=seed, done=done, store=False, **options
        )
        scores = [(await _score(reward, reply))[0] for reply in replies]
        count = len(self.requests)
        rewards = [scores[p::count] for p in range(count)]
        win_rate, against_best_of_n = _win_rate(rewards, self.rewards), _win_rate(rewards, self.best_of_n)
        assert win_rate is not None
        tokens = mean(reply.drawn_tokens for reply in replies)
        figures = Figures(
            version=replies[0].version,
            k=mean(reply.draws for reply in replies),
            win_rate=win_rate.value,
            win_rate_low=win_rate.low,
            win_rate_high=win_rate.high,
            comparisons=win_rate.count,
            win_rate_best_of_n=against_best_of_n.value if against_best_of_n else None,
            win_rate_best_of_n_low=against_best_of_n.low if against_best_of_n else None,
            win_rate_best_of_n_high=against_best_of_n.high if against_best_of_n else None,
            kl=kl,
            kl_estimator=kl_estimator,
            reward_mean=mean(scores),
            length_mean=mean(reply.returned_tokens for reply in replies),
            tokens_per_answer=tokens,
            saved_share=1 - tokens / self.best_of_n_tokens if self.best_of_n_tokens else None,
            latency_p50_s=median(timing.latency for timing in timings),
            ttft_p50_s=median(timing.ttft for timing in timings),
        )
        if is_best_of_n:
            self.best_of_n, self.best_of_n_tokens = rewards, tokens
        return figures, replies[:count]


def _win_rate(ours: list[list[float]], theirs: list[list[float]]) -> Estimate | None:
    """Returns the win rate over requests, ties as half, or None without an opponent."""
    if not theirs:
        return None
    shares = [win_fraction(mine, others) for mine, others in zip(ours, theirs, strict=True)]
    return clustered_mean(shares, sum(len(a) * len(b) for a, b in zip(ours, theirs, strict=True)))


async def _score(reward: Reward, reply: Reply) -> list[float]:
    """Returns the reward of each returned text, computed here instead of taken from the service's response."""
    distinct = list(dict.fromkeys(reply.texts))
    scores = dict(zip(distinct, await reward.score(Prompt.user(reply.request), distinct), strict=True))
    return [scores[text] for text in reply.texts]
