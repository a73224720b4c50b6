"""The last check before a version gets requests: it answers, and with probabilities."""

import asyncio
import math

from bonbon.draws import Draw, collect
from bonbon.engines.base import DrawRequest, Engine, Sampling
from bonbon.errors import EngineError
from bonbon.prompt import Prompt

# Plain text, so that a base without a chat template is checked as well.
PROMPTS = ("Hello!", "What is the capital of France?", "1 + 1 =")
SAMPLING = Sampling(max_tokens=16, seed=0)


async def check_golden_prompts(engine: Engine, version: str, *, deadline: float = 60.0) -> None:
    """Draw from `version` for a few fixed prompts.

    Raises EngineError when it draws no token, gives a log-probability that is not finite, or takes longer than
    `deadline` seconds; and whatever the engine raises.
    """
    try:
        async with asyncio.timeout(deadline):
            for prompt in PROMPTS:
                draws = await collect(engine, DrawRequest(Prompt(text=prompt), version, 1, SAMPLING))
                _check(draws.draws[0], prompt)
    except TimeoutError as error:
        raise EngineError(f"the golden prompts were not answered within {deadline:g} s") from error


def _check(draw: Draw, prompt: str) -> None:
    if not draw.token_ids or draw.finish_reason in (None, "abort"):
        raise EngineError(f"the golden prompt {prompt!r} was not answered")
    if len(draw.logprobs) != len(draw.token_ids) or not all(math.isfinite(logprob) for logprob in draw.logprobs):
        raise EngineError(f"the golden prompt {prompt!r} was answered with log-probabilities that are not finite")
