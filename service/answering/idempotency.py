"""Answers a repeated request from the log."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from bonbon.best_of_n import Answer
from bonbon.engines.candidates import Draw
from bonbon.engines.engine import Delta, DrawRequest, Engine, Sampling, Started
from bonbon.errors import EngineError
from bonbon.pairs.group_records import Group
from bonbon.prompt import Prompt
from service.answering.completion_request import CompletionRequest


async def repeat(
    engine: Engine, completion_request: CompletionRequest, prompt: Prompt, group: Group
) -> AsyncGenerator[Started | Delta | Answer]:
    """Yields the events of `group`'s answer. Nothing is generated, except to learn how the engine reads the prompt.

    Raises:
        UserError: The group answers a different request, because the client used the same key twice.
    """
    completion_request.check_same(group, prompt)
    yield await _read(engine, prompt, group.salt)
    for candidate in group.served:
        yield Delta(0, candidate.text, candidate.token_ids, finish_reason=candidate.finish_reason)
    draws = tuple(Draw(c.index, c.text, list(c.token_ids), finish_reason=c.finish_reason) for c in group.candidates)
    yield Answer(group, draws)


async def _read(engine: Engine, prompt: Prompt, salt: str) -> Started:
    request = DrawRequest(prompt, engine.base, 1, Sampling(max_tokens=1), salt=salt)
    async with aclosing(engine.draw(request)) as events:
        async for event in events:
            if isinstance(event, Started):
                return event
    raise EngineError("the engine ended the request before it started; see its log")
