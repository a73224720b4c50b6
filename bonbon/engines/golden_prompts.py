"""Fixed prompts that show whether an engine draws, before anybody else's prompt does."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from bonbon.engines.candidates import Draw, Draws, collect
from bonbon.engines.engine import DrawRequest, Engine, Sampling
from bonbon.errors import EngineError, PromptTooLong
from bonbon.prompt import Prompt

# Plain text, so that a base without a chat template is checked as well. Of different lengths, for they share a batch.
PROMPTS = ("Hello!", "What is the capital of France?", "1 + 1 =")
SAMPLING = Sampling(max_tokens=16, seed=0)
GREEDY = Sampling(max_tokens=8, temperature=0)
"""For draws that are compared: the same tokens whatever the engine does with a seed."""
MOST_APART = 0.2
"""Nats per token by which two draws of one version may differ: what `train.max_sampler_gap` allows by default."""
LONGEST = 4096
"""Tokens of the longest prompt that is drawn for."""
PATIENCE = 20.0
"""Seconds that reading the longest prompt may take; it is shorter on a machine that would take longer."""

log = structlog.get_logger(__name__)


async def check_golden_prompts(engine: Engine, version: str, *, deadline: float = 60.0) -> None:
    """Draw from `version` for a few fixed prompts, alone and, unless it is the base, in a batch with the base.

    Raises EngineError when it draws no token, gives a log-probability that is not finite, gives another one in the
    batch than alone, or takes longer than `deadline` seconds; and whatever the engine raises.
    """
    async with _within(deadline, f"the golden prompts of {version}"):
        await _answered(engine, version)
        if version != engine.base and engine.base in await engine.loaded():
            await _check_together(engine, [(name, Prompt(text=PROMPTS[0])) for name in (version, engine.base)])


async def check_base(engine: Engine, *, deadline: float = 300.0) -> None:
    """See that a started engine draws from its base: for short prompts and a long one, one by one and all at once.

    The long prompt fills the context. It has at most `LONGEST` tokens, and fewer where reading them would take more
    than `PATIENCE` seconds.

    Raises what `check_golden_prompts` raises, for the same reasons.
    """
    async with _within(deadline, "the golden prompts of the base"):
        prompts = await _answered(engine, engine.base)
        ids = [token_id for prompt in prompts for token_id in prompt]
        longest = _repeated(ids, await _readable(engine, ids, min(engine.context_length, LONGEST) - GREEDY.max_tokens))
        await _check_together(engine, [(engine.base, Prompt(token_ids=prompt)) for prompt in (*prompts, longest)])


async def _answered(engine: Engine, version: str) -> list[tuple[int, ...]]:
    """Draw for each golden prompt that the context has room for; their token ids."""
    read: list[tuple[int, ...]] = []
    for text in PROMPTS:
        try:
            draws = await _draw(engine, version, Prompt(text=text), SAMPLING)
        except PromptTooLong:
            if text == PROMPTS[-1] and not read:
                raise
        else:
            read.append(draws.prompt.token_ids)
    return read


async def _check_together(engine: Engine, asked: Sequence[tuple[str, Prompt]]) -> None:
    """Draw for versions and prompts one after the other, and all at once."""
    alone = [await _draw(engine, version, prompt, GREEDY) for version, prompt in asked]
    together = await asyncio.gather(*(_draw(engine, version, prompt, GREEDY) for version, prompt in asked))
    for (version, _), one, other in zip(asked, alone, together, strict=True):
        apart = _apart(one.draws[0], other.draws[0])
        if apart > MOST_APART:
            raise EngineError(
                f"{version} answers a prompt of {len(one.prompt.token_ids)} tokens with log-probabilities that are "
                f"{apart:.2g} nats per token apart when it is drawn alone and beside others, so what is logged could "
                "not be trained on"
            )


async def _draw(engine: Engine, version: str, prompt: Prompt, sampling: Sampling) -> Draws:
    draws = await collect(engine, DrawRequest(prompt, version, 1, sampling))
    draw, shown = draws.draws[0], f"the golden prompt {draws.prompt.text[:40]!r}"
    if not draw.token_ids or draw.finish_reason in (None, "abort"):
        raise EngineError(f"{shown} was not answered")
    if len(draw.logprobs) != len(draw.token_ids) or not all(math.isfinite(logprob) for logprob in draw.logprobs):
        raise EngineError(f"{shown} was answered with log-probabilities that are not finite")
    return draws


async def _readable(engine: Engine, ids: Sequence[int], room: int) -> int:
    """How many tokens of a prompt the engine reads in time, `room` at most."""
    pilot = max(1, min(room, 64))
    seconds = PATIENCE
    for _ in range(2):  # the first one may warm something up
        start = time.perf_counter()
        await _draw(engine, engine.base, Prompt(token_ids=_repeated(ids, pilot)), Sampling(max_tokens=1, temperature=0))
        seconds = min(seconds, time.perf_counter() - start)
    most = max(pilot, int(pilot * PATIENCE / max(seconds, 1e-6)))
    if most < room:
        log.info("the golden prompts do not reach the context's end: this machine is too slow", tokens=most, of=room)
    return min(room, most)


def _repeated(ids: Sequence[int], length: int) -> tuple[int, ...]:
    return tuple(ids[at % len(ids)] for at in range(length))


def _apart(one: Draw, other: Draw) -> float:
    """Mean difference of the log-probabilities of the tokens that both begin with; infinite where there are none."""
    gaps: list[float] = []
    pairs = zip(one.token_ids, other.token_ids, one.logprobs, other.logprobs, strict=False)
    for token, its_token, logprob, its_logprob in pairs:
        if token != its_token:
            break
        gaps.append(abs(logprob - its_logprob))
    return math.fsum(gaps) / len(gaps) if gaps else math.inf


@asynccontextmanager
async def _within(deadline: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline):
            yield
    except TimeoutError as error:
        raise EngineError(f"{what} were not answered within {deadline:g} s") from error
