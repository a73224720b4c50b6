"""Measures a version on test prompts with fresh draws of it, of the base and of the version that answers requests."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import NamedTuple

from bonbon.concurrency.gather import gather_or_cancel
from bonbon.engines.engine import Engine, VersionFiles
from bonbon.errors import UserError
from bonbon.progress import bar
from bonbon.rewards.reward import Reward
from bonbon.settings import EvaluateSettings
from trainer.data.logged_prompts import LoggedPrompt
from trainer.evaluation import measures
from trainer.evaluation.divergence import Completion, DivergenceEstimator
from trainer.evaluation.evaluation import Evaluation
from trainer.evaluation.samples import Sampler, Samples, choose

CONCURRENCY = 16
"""The most prompts processed concurrently."""
KL_DRAWS = 2
"""Draws per prompt from which the KL is estimated. Two suffice, because an answer's divergence varies less than its
reward.
"""
BASE_GROUPS = 4
"""Groups of n draws of the base per prompt. A group shows best-of-n of the base once, so this number bounds the
precision of comparisons with it.
"""
MORE_DRAWS = 2
"""The largest factor by which an evaluation with fewer prompts than `evaluate.prompts` draws more for each prompt. The
variance of a comparison with best-of-n comes mostly from the draws, so that more draws make up for fewer prompts.
"""


class Served(NamedTuple):
    """How requests are answered now: with the best of `k` draws of `version`, which is None for the base."""

    version: VersionFiles | None
    k: int


async def evaluate(
    *,
    engine: Engine,
    reward: Reward,
    held_out_reward: Reward | None,
    divergence: DivergenceEstimator,
    prompts: Iterable[LoggedPrompt],
    version: VersionFiles,
    served: Served,
    n: int,
    settings: EvaluateSettings,
    seed: int = 0,
    concurrency: int = CONCURRENCY,
    progress: bool = True,
    temporary: bool = False,
) -> Evaluation:
    """Measures `version` on `settings.prompts` of `prompts`, none of which may have been used in training.

    Starts the engine and the rewards, and stops them before the divergences are estimated, which need the memory.

    Args:
        prompts: Test prompts; which of them are used depends on them and on `seed` only.
        n: The n of best-of-n.
        concurrency: Prompts for which candidates are drawn at once.
        temporary: The version is loaded under this name for the evaluation only, so a fleet unloads it afterwards.

    Raises:
        UserError: There are fewer than two prompts, or a prompt was not sampled from the policy's own distribution.
        RewardError, EngineError: Scoring or drawing failed.
    """
    start = perf_counter()
    chosen = choose(prompts, settings.prompts, seed)
    if strange := [one.sampling for one in chosen if not one.sampling.unmodified]:
        raise UserError(
            "an evaluation draws from the policy's own distribution (temperature above 0, no top_p, no top_k), but a "
            f"prompt was sampled with {strange[0]}"
        )
    if len(chosen) < 2:
        raise UserError(
            f"{len(chosen)} test prompts are too few to measure on; log groups for more different prompts, or raise "
            "train.held_out_fraction"
        )
    most_k = settings.draws or n
    more = min(MORE_DRAWS, settings.prompts / len(chosen))
    draws = settings.draws or round(more * n)
    async with AsyncExitStack() as running:
        await running.enter_async_context(_started(engine))
        for scorer in filter(None, (reward, held_out_reward)):
            await running.enter_async_context(_started(scorer))
        for files in filter(None, (version, served.version)):
            if engine.displaces(files):
                raise UserError(
                    "an evaluation draws from several weights in turn, and this engine holds one at a time: set "
                    "evaluate.engine_options.full_weights to 'beside'"
                )
            await engine.load(files)
        sampler = Sampler(
            engine,
            reward,
            held_out_reward,
            version=version.name,
            served=served.version.name if served.version else None,
            draws=draws,
            served_draws=max(most_k, served.k),
            base_draws=round(more * BASE_GROUPS * n),
            seed=seed,
        )
        samples = await _draw_all(
            sampler, chosen, "drawing for test prompts", concurrency=concurrency, progress=progress
        )
        context_length = engine.context_length
        if temporary:
            await engine.unload(version.name)
    if len(samples) < 2:
        raise UserError(
            f"{len(chosen) - len(samples)} of {len(chosen)} test prompts and their max_tokens do not fit the "
            f"context of {context_length} tokens: too few are left to measure on"
        )
    answers = min(KL_DRAWS, draws)
    completions = _completions(samples, answers, seed)
    with bar("estimating the KL from the base", len(completions), show=progress, transient=False) as task:
        divergences = await asyncio.to_thread(divergence, completions, task.advance)
    commonest = Counter((one.sampling.temperature, one.sampling.max_tokens) for one in chosen).most_common(1)[0][0]
    return Evaluation(
        version=version.name,
        base=engine.base,
        served=served.version.name if served.version else engine.base,
        served_k=served.k,
        n=n,
        prompts=len(samples),
        draws=draws,
        skipped=len(chosen) - len(samples),
        seed=seed,
        temperature=commonest[0],
        max_tokens=commonest[1],
        reward=reward.name,
        reward_version=reward.version,
        held_out_reward=held_out_reward.name if held_out_reward else None,
        best_of_k=measures.best_of_k(samples, n=n, served_k=served.k, most_k=most_k),
        kl_estimator=divergence.name,
        **measures.win_rates(samples, n),
        **measures.rewards(samples, n),
        **measures.divergences(samples, divergences, answers, n),
        **measures.lengths(samples, served_k=served.k),
        seconds=perf_counter() - start,
    )


@asynccontextmanager
async def _started(part: Engine | Reward) -> AsyncIterator[None]:
    await part.start()
    try:
        yield
    finally:
        await part.stop()


async def _draw_all(
    sampler: Sampler, prompts: Sequence[LoggedPrompt], title: str, *, concurrency: int, progress: bool
) -> list[Samples]:
    slots = asyncio.Semaphore(concurrency)

    async def draw(prompt: LoggedPrompt) -> Samples | None:
        async with slots:
            samples = await sampler(prompt)
        task.advance(1)
        return samples

    with bar(title, len(prompts), show=progress, transient=False) as task:
        drawn = await gather_or_cancel(draw(prompt) for prompt in prompts)
    return [samples for samples in drawn if samples is not None]


def _completions(samples: Sequence[Samples], answers: int, seed: int) -> list[Completion]:
    """Returns `answers` draws of each prompt, chosen independently of their rewards."""
    rng = random.Random(seed)
    return [
        Completion(one.prompt, draw.tokens, one.temperature)
        for one in samples
        for draw in rng.sample(list(one.version), answers)
    ]
