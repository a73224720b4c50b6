"""Fixed prompts that show whether an engine can sample before any user's request reaches it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from bonbon.engines.candidates import Draw, Draws, collect
from bonbon.engines.engine import DrawRequest, Engine, Sampling
from bonbon.errors import EngineError, PromptTooLong, UserError
from bonbon.prompt import Prompt

# Plain text, so that a base without a chat template is checked as well, and of different lengths, to mix in a batch.
PROMPTS = ("Hello!", "What is the capital of France?", "1 + 1 =")
SAMPLING = Sampling(max_tokens=16, seed=0)
GREEDY = Sampling(max_tokens=8, temperature=0)
"""Sampling parameters for comparisons: greedy decoding gives the same tokens however an engine uses seeds."""
MAX_LOGPROB_GAP = 0.2
"""The maximum difference in nats per token between two samples of one version: the default of
`train.max_sampler_gap`."""
MAX_PROMPT_TOKENS = 4096
"""The maximum number of tokens of the longest prompt."""
MAX_READ_SECONDS = 5.0
"""The maximum seconds that reading the longest prompt may take; the prompt is shorter on a slow machine. It is read
twice, alone and in a batch."""
PILOT_TOKENS = 64, 512
"""The numbers of tokens of the prompts that show how fast the engine reads."""

log = structlog.get_logger(__name__)


async def check_golden_prompts(engine: Engine, version: str, *, deadline: float = 60.0) -> None:
    """Samples from `version` for a few fixed prompts, alone and, unless it is the base, in a batch with the base.

    Raises whatever the engine raises, and EngineError when the version samples no token, reports a log-probability that
    is not finite, reports different log-probabilities alone and in the batch, or takes longer than `deadline` seconds.
    """
    async with _within(deadline, f"the golden prompts of {version}"):
        await _check_each(engine, version)
        if version != engine.base and engine.base in await engine.loaded():
            await _check_batched(engine, [(name, Prompt(text=PROMPTS[0])) for name in (version, engine.base)])


async def check_base(engine: Engine, *, deadline: float = 300.0) -> None:
    """Checks that a started engine can sample from its base, for short prompts and a long one, singly and in a batch.

    The long prompt fills the context, up to `MAX_PROMPT_TOKENS` tokens; it is shorter where reading it once would take
    more than `MAX_READ_SECONDS` seconds. Raises the same errors as `check_golden_prompts`, for the same reasons.
    """
    async with _within(deadline, "the golden prompts of the base"):
        prompts = await _check_each(engine, engine.base)
        ids = [token_id for prompt in prompts for token_id in prompt]
        longest = _repeated(
            ids, await _readable(engine, ids, min(engine.context_length, MAX_PROMPT_TOKENS) - GREEDY.max_tokens)
        )
        await _check_batched(engine, [(engine.base, Prompt(token_ids=prompt)) for prompt in (*prompts, longest)])


async def check_started(engine: Engine, directory: Path, *, name: str, remedy: str) -> None:
    """Runs `check_base` on an engine that has just started, and stops the engine when the check fails.

    Args:
        directory: The directory of the base, for the message.
        name: What the message calls the engine.
        remedy: What the message tells the user to do.

    Raises:
        UserError: The engine started, but cannot sample from its base.
    """
    try:
        await check_base(engine)
    except BaseException as error:
        await engine.stop()
        if isinstance(error, EngineError):
            message = f"{name} cannot sample from model {directory} ({error}); {remedy}"
            raise UserError(message, param="model") from error
        raise


async def _check_each(engine: Engine, version: str) -> list[tuple[int, ...]]:
    """Samples for each golden prompt that fits into the context, and returns the token ids of these prompts."""
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


async def _check_batched(engine: Engine, requests: Sequence[tuple[str, Prompt]]) -> None:
    """Samples for all versions and prompts one after the other, then all in one batch, and compares the two."""
    alone = [await _draw(engine, version, prompt, GREEDY) for version, prompt in requests]
    batched = await asyncio.gather(*(_draw(engine, version, prompt, GREEDY) for version, prompt in requests))
    for (version, _), one, other in zip(requests, alone, batched, strict=True):
        gap = _logprob_gap(one.draws[0], other.draws[0])
        if gap > MAX_LOGPROB_GAP:
            raise EngineError(
                f"{version} answers a prompt of {len(one.prompt.token_ids)} tokens with log-probabilities that differ "
                f"by {gap:.2g} nats per token between sampling it alone and in a batch, so the logged "
                "log-probabilities could not be trained on"
            )


async def _draw(engine: Engine, version: str, prompt: Prompt, sampling: Sampling) -> Draws:
    draws = await collect(engine, DrawRequest(prompt, version, 1, sampling))
    draw, shown = draws.draws[0], f"the golden prompt {draws.prompt.text[:40]!r}"
    if not draw.token_ids or draw.finish_reason in (None, "abort"):
        raise EngineError(f"{shown} was not answered")
    if len(draw.logprobs) != len(draw.token_ids) or not all(math.isfinite(logprob) for logprob in draw.logprobs):
        raise EngineError(f"{shown} was answered with log-probabilities that are not finite")
    return draws


async def _readable(engine: Engine, ids: Sequence[int], limit: int) -> int:
    """Returns how many tokens of a prompt the engine reads in `MAX_READ_SECONDS`, at most `limit`."""
    short = max(1, min(limit, PILOT_TOKENS[0]))
    # The first may include a warm-up. No prompt begins like another one, of which the engine may have kept the cache.
    seconds = min([await _read_seconds(engine, ids, short, first) for first in (1, 2)])
    in_time = _tokens_in_time(seconds / short, 0.0)
    if in_time >= limit:
        return limit
    longer = min(in_time, PILOT_TOKENS[1])
    if longer > short:
        # Attention takes a time that grows with the square of the length.
        grown = await _read_seconds(engine, ids, longer, 3) / longer
        growth = max(0.0, (grown - seconds / short) / (longer - short))
        in_time = _tokens_in_time(grown - growth * longer, growth)
    length = min(limit, max(short, in_time))
    if length < limit:
        log.info("golden prompts shortened: reading a full context takes too long here", tokens=length, of=limit)
    return length


async def _read_seconds(engine: Engine, ids: Sequence[int], length: int, first: int) -> float:
    """Returns the seconds in which the engine reads a prompt of `length` tokens that begins with `ids[first]`."""
    start = time.perf_counter()
    await _draw(
        engine, engine.base, Prompt(token_ids=_repeated(ids, length, first)), Sampling(max_tokens=1, temperature=0)
    )
    return time.perf_counter() - start


def _tokens_in_time(constant: float, growth: float) -> int:
    """Returns the length L at which L (constant + growth L) seconds, the time to read it, are `MAX_READ_SECONDS`."""
    constant = max(constant, 1e-9)
    # This form of the solution also holds without growth.
    return int(2 * MAX_READ_SECONDS / (constant + math.sqrt(constant**2 + 4 * growth * MAX_READ_SECONDS)))


def _repeated(ids: Sequence[int], length: int, first: int = 0) -> tuple[int, ...]:
    return tuple(ids[at % len(ids)] for at in range(first, first + length))


def _logprob_gap(one: Draw, other: Draw) -> float:
    """Returns the mean difference of the log-probabilities of the tokens that both candidates begin with.

    Returns infinity when the first tokens differ.
    """
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
        raise EngineError(f"the engine did not answer {what} within {deadline:g} s") from error
