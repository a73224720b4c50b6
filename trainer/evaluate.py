"""Measures a version on held-out prompts: draws anew from it and from the base, scores, estimates."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from bonbon.engines.base import Engine, Sampling, VersionFiles
from bonbon.errors import UserError
from bonbon.prompt import Prompt
from bonbon.rewards.base import Reward
from bonbon.rewards.together import together
from bonbon.settings import EvaluateSettings
from bonbon.theory import Estimate
from trainer import estimates
from trainer.evaluation import Evaluation
from trainer.progress import bar
from trainer.samples import Judge, Sampler, Samples, Scored, by_held_out, by_reward, choose, wins

CONCURRENCY = 16
"""Prompts in flight."""


class Completion(NamedTuple):
    """A completion that was drawn, as token ids, the end-of-sequence token included."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


class Divergence(NamedTuple):
    """Two estimates of KL(policy || other) from one completion of the policy, in nats."""

    rao_blackwell: float
    k1: float


class DivergenceEstimator(Protocol):
    """Estimates how far a policy is from others, from the policy's own completions. Blocking."""

    name: str
    """The estimator that is reported first."""

    def __call__(
        self, policy: str, others: Sequence[str], completions: Sequence[Completion], advance: Callable[[int], None]
    ) -> dict[str, list[Divergence]]:
        """For each name in `others`, one divergence per completion; `advance` is told how many more are done."""
        ...


async def evaluate(
    *,
    engine: Engine,
    reward: Reward,
    held_out_reward: Reward | None,
    divergence: DivergenceEstimator,
    prompts: Iterable[Prompt],
    version: VersionFiles,
    reference: VersionFiles | None,
    n: int,
    sampling: Sampling,
    settings: EvaluateSettings,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Measure `version` on `settings.prompts` of `prompts`, none of which may have been trained on.

    Engine and rewards are started here, and stopped before divergences are estimated: these need the memory.

    Args:
        prompts: held-out prompts; which of them are used depends on them and on `seed` only.
        reference: what the version was trained from, None when that was the base.
        n: of best-of-n.
        sampling: how the training groups were drawn; its own seed is not used.

    Raises:
        UserError: fewer than two prompts to measure on, or a sampling that is not the policy's own law.
        RewardError, EngineError: scoring or drawing failed.
    """
    start = perf_counter()
    if not sampling.unmodified:
        raise UserError(
            f"an evaluation draws from the policy's own law (temperature > 0, no top_p, no top_k): {sampling}"
        )
    chosen = choose(prompts, settings.prompts, seed)
    if len(chosen) < 2:
        raise UserError(
            f"{len(chosen)} held-out prompts are too few to measure on; log groups for more different prompts, or "
            "raise train.held_out_fraction"
        )
    async with AsyncExitStack() as running:
        await running.enter_async_context(_started(engine))
        for scorer in filter(None, (reward, held_out_reward)):
            await running.enter_async_context(_started(scorer))
        for files in filter(None, (version, reference)):
            await engine.load(files)
        sampler = Sampler(
            engine,
            reward,
            held_out_reward,
            version=version.name,
            reference=reference.name if reference else None,
            n=n,
            answers=settings.answers,
            sampling=sampling,
            seed=seed,
        )
        samples = await _draw_all(sampler, chosen, f"measuring {version.name} on held-out prompts", progress)
    if len(samples) < 2:
        raise UserError(
            f"{len(chosen) - len(samples)} of {len(chosen)} held-out prompts leave no room for max_tokens "
            f"{sampling.max_tokens} in the context of {engine.context_length} tokens: too few are left to measure on"
        )
    completions = [Completion(one.prompt, answer.tokens) for one in samples for answer in one.answers]
    others = [engine.base, *([reference.name] if reference else [])]
    with bar(f"estimating the KL of {version.name}", len(completions), show=progress) as advance:
        divergences = await asyncio.to_thread(divergence, version.name, others, completions, advance)
    return Evaluation(
        version=version.name,
        base=engine.base,
        reference=reference.name if reference else engine.base,
        n=n,
        prompts=len(samples),
        answers=settings.answers,
        skipped=len(chosen) - len(samples),
        seed=seed,
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        reward=reward.name,
        held_out_reward=held_out_reward.name if held_out_reward else None,
        kl_estimator=divergence.name,
        **_win_rates(samples),
        **_rewards(samples),
        **_divergences("kl", divergences[engine.base], settings.answers),
        **_divergences("kl_reference", divergences[reference.name] if reference else None, settings.answers),
        **_lengths(samples),
        seconds=perf_counter() - start,
    )


@asynccontextmanager
async def _started(part: Engine | Reward) -> AsyncIterator[None]:
    await part.start()
    try:
        yield
    finally:
        await part.stop()


async def _draw_all(sampler: Sampler, prompts: Sequence[Prompt], title: str, progress: bool) -> list[Samples]:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def draw(prompt: Prompt) -> Samples | None:
        async with slots:
            samples = await sampler(prompt)
        advance(1)
        return samples

    with bar(title, len(prompts), show=progress) as advance:
        drawn = await together(draw(prompt) for prompt in prompts)
    return [samples for samples in drawn if samples is not None]


def _win_rates(samples: Sequence[Samples]) -> dict[str, Any]:
    n, answers = len(samples[0].groups[0]), len(samples[0].answers)

    def rate(one_prompt: Callable[[Samples], float], comparisons: int) -> Estimate:
        return estimates.win_rate([one_prompt(one) for one in samples], comparisons * len(samples))

    def against_base(judge: Judge) -> Estimate:
        return rate(lambda one: wins(one.answers, one.base, judge), answers * 2 * n)

    def best_of_n(judge: Judge) -> Estimate:
        return rate(lambda one: one.best_of_n_wins(judge), 2 * n)

    held_out = samples[0].base[0].held_out is not None
    return {
        "win_rate": against_base(by_reward),
        "win_rate_best_of_n": rate(lambda one: wins(one.answers, one.best, by_reward), answers * 2),
        "win_rate_reference": rate(lambda one: wins(one.answers, one.reference, by_reward), answers * n)
        if samples[0].reference
        else None,
        "best_of_n_win_rate": best_of_n(by_reward),
        "held_out_win_rate": against_base(by_held_out) if held_out else None,
        "held_out_best_of_n_win_rate": best_of_n(by_held_out) if held_out else None,
    }


def _rewards(samples: Sequence[Samples]) -> dict[str, Any]:
    ours = [_mean_reward(one.answers) for one in samples]
    base = [_mean_reward(one.base) for one in samples]
    best = [_mean_reward(one.best) for one in samples]
    answers, n = len(samples[0].answers), len(samples[0].groups[0])
    return {
        "reward_mean": estimates.mean(ours, answers * len(samples)),
        "base_reward_mean": estimates.mean(base, 2 * n * len(samples)),
        "best_of_n_reward_mean": estimates.mean(best, 2 * len(samples)),
        "recovered": estimates.ratio(
            [a - b for a, b in zip(ours, base, strict=True)],
            [a - b for a, b in zip(best, base, strict=True)],
            answers * len(samples),
        ),
    }


def _lengths(samples: Sequence[Samples]) -> dict[str, Any]:
    ours, base = [one.answers for one in samples], [one.base for one in samples]
    # Distinct-n falls as there is more text: as many draws of the base as there are answers.
    alike = [one.base[: len(one.answers)] for one in samples]
    our_lengths = [fmean(len(draw.tokens) for draw in draws) for draws in ours]
    base_lengths = [fmean(len(draw.tokens) for draw in draws) for draws in base]
    count, base_count = sum(map(len, ours)), sum(map(len, base))
    return {
        "length_mean": estimates.mean(our_lengths, count),
        "base_length_mean": estimates.mean(base_lengths, base_count),
        "length_ratio": estimates.ratio(our_lengths, base_lengths, count),
        "truncated": sum(draw.truncated for draws in ours for draw in draws) / count,
        "base_truncated": sum(draw.truncated for draws in base for draw in draws) / base_count,
        "distinct_1": _distinct(ours, 1),
        "distinct_2": _distinct(ours, 2),
        "base_distinct_1": _distinct(alike, 1),
        "base_distinct_2": _distinct(alike, 2),
    }


def _divergences(name: str, values: Sequence[Divergence] | None, answers: int) -> dict[str, Any]:
    if values is None:
        return {name: None, f"{name}_k1": None}
    clusters = [values[i : i + answers] for i in range(0, len(values), answers)]
    return {
        name: estimates.mean([fmean(one.rao_blackwell for one in cluster) for cluster in clusters], len(values)),
        f"{name}_k1": estimates.mean([fmean(one.k1 for one in cluster) for cluster in clusters], len(values)),
    }


def _mean_reward(draws: Sequence[Scored]) -> float:
    return fmean(draw.reward for draw in draws)


def _distinct(answers: Iterable[Sequence[Scored]], order: int) -> float:
    return estimates.distinct([draw.tokens for draws in answers for draw in draws], order)
