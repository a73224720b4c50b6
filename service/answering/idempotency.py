"""Answers a repeated request from the log."""

from collections.abc import AsyncGenerator

from bonbon.best_of_n import Answer
from bonbon.engines.candidates import Draw, read_prompt
from bonbon.engines.engine import Delta, DrawRequest, Engine, Started
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
    yield await read_prompt(engine, DrawRequest(prompt, engine.base, salt=group.salt))
    for candidate in group.served:
        yield Delta(0, candidate.text, candidate.token_ids, finish_reason=candidate.finish_reason)
    draws = tuple(Draw(c.index, c.text, list(c.token_ids), finish_reason=c.finish_reason) for c in group.candidates)
    yield Answer(group, draws)
