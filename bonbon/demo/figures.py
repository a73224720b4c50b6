"""What a policy is worth and what it costs, measured from outside over HTTP."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median

from bonbon.demo.traffic import Reply, Timing, Traffic
from bonbon.prompt import Prompt
from bonbon.rewards.base import Reward
from bonbon.theory import clustered_mean, win_fraction


@dataclass(frozen=True, slots=True)
class Figures:
    """One row of the before/after table. Lengths are in tokens, times in seconds, KL in nats."""

    version: str
    win_rate: float
    win_rate_low: float
    win_rate_high: float
    comparisons: int
    kl: float
    kl_estimator: str
    reward_mean: float
    length_mean: float
    tokens_per_answer: float
    latency_p50_s: float
    ttft_p50_s: float


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The base's draws that every policy is compared with, and the requests they answer."""

    requests: list[str]
    rewards: list[list[float]]

    @classmethod
    async def draw(
        cls, traffic: Traffic, reward: Reward, requests: list[str], n: int, *, seed: int, done: Callable[[], None]
    ) -> "Yardstick":
        """`n` independent draws of the base per request."""
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
        kl: float,
        kl_estimator: str,
        seed: int,
        answers: int,
        streams: int,
        done: Callable[[], None],
    ) -> tuple[Figures, list[Reply]]:
        """Figures of the policy that `model` names, from `answers` answers per request and `streams` streamed ones."""
        timings: list[Timing] = [
            await traffic.stream(self.requests[i % len(self.requests)], model=model, seed=seed + i)
            for i in range(streams)
        ]
        replies = await traffic.ask_all(self.requests * answers, model=model, seed=seed, done=done, store=False)
        rewards = [(await _score(reward, reply))[0] for reply in replies]
        count = len(self.requests)
        win_rate = clustered_mean(
            [win_fraction(rewards[p::count], self.rewards[p]) for p in range(count)],
            sum(len(base) for base in self.rewards) * answers,
        )
        figures = Figures(
            version=replies[0].version,
            win_rate=win_rate.value,
            win_rate_low=win_rate.low,
            win_rate_high=win_rate.high,
            comparisons=win_rate.count,
            kl=kl,
            kl_estimator=kl_estimator,
            reward_mean=mean(rewards),
            length_mean=mean(reply.returned_tokens for reply in replies),
            tokens_per_answer=mean(reply.drawn_tokens for reply in replies),
            latency_p50_s=median(timing.latency for timing in timings),
            ttft_p50_s=median(timing.ttft for timing in timings),
        )
        return figures, replies[:count]


async def _score(reward: Reward, reply: Reply) -> list[float]:
    """The reward of each returned text, scored here and not taken from the service's word."""
    distinct = list(dict.fromkeys(reply.texts))
    scores = dict(zip(distinct, await reward.score(Prompt.user(reply.request), distinct), strict=True))
    return [scores[text] for text in reply.texts]
