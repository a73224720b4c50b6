"""Measures a version on held-out prompts: draws anew from it and from the base, scores, estimates."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter

from bonbon.engines.base import Engine, Sampling, VersionFiles
from bonbon.errors import UserError
from bonbon.prompt import Prompt
from bonbon.rewards.base import Reward
from bonbon.rewards.together import together
from bonbon.settings import EvaluateSettings
from trainer.bars import bar
from trainer.evaluation import measures
from trainer.evaluation.divergence import Completion, DivergenceEstimator
from trainer.evaluation.evaluation import Evaluation
from trainer.evaluation.samples import Sampler, Samples, choose

CONCURRENCY = 16
"""Prompts in flight."""


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
    temporary: bool = False,
) -> Evaluation:
    """Measure `version` on `settings.prompts` of `prompts`, none of which may have been trained on.

    Engine and rewards are started here, and stopped before divergences are estimated: these need the memory.

    Args:
        prompts: held-out prompts; which of them are used depends on them and on `seed` only.
        reference: what the version was trained from, None when that was the base.
        n: of best-of-n.
        sampling: how the training groups were drawn; its own seed is not used.
        temporary: nobody else draws from the version under this name: a fleet is to forget it again.

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
            reference=reference.name if reference else None,
            n=n,
            answers=settings.answers,
            sampling=sampling,
            seed=seed,
        )
        samples = await _draw_all(sampler, chosen, f"measuring {version.name} on held-out prompts", progress)
        room = engine.context_length
        if temporary:
            await engine.unload(version.name)
    if len(samples) < 2:
        raise UserError(
            f"{len(chosen) - len(samples)} of {len(chosen)} held-out prompts leave no room for max_tokens "
            f"{sampling.max_tokens} in the context of {room} tokens: too few are left to measure on"
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
        reward_version=reward.version,
        held_out_reward=held_out_reward.name if held_out_reward else None,
        kl_estimator=divergence.name,
        **measures.win_rates(samples),
        **measures.rewards(samples),
        **measures.divergences("kl", divergences[engine.base], settings.answers),
        **measures.divergences("kl_reference", divergences[reference.name] if reference else None, settings.answers),
        **measures.lengths(samples),
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
