"""Answers a request: samples candidates, ranks them, and logs the group."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from bonbon.best_of_n import Answer, BestOfN
from bonbon.engines.candidates import Draws
from bonbon.engines.engine import Delta, DrawRequest, Engine, PromptLogprobs, Started
from bonbon.errors import EngineError, StoreError
from bonbon.observability.tracing import Key, Name, span
from bonbon.pairs.group_records import salt_of
from bonbon.pairs.group_store import Kept
from bonbon.pairs.ranking import why_unclean
from bonbon.prompt import Prompt
from service.answering.completion_request import CompletionRequest
from service.answering.field_names import naming_fields
from service.answering.idempotency import repeat
from service.answering.merge_streams import merge
from service.app_state import AppState
from service.limits.rate_limits import Charge
from service.routing.router import Route

Event = PromptLogprobs | Started | Delta | Answer


async def answer(
    state: AppState,
    completion_request: CompletionRequest,
    route: Route,
    charge: Charge,
    *,
    live: bool = False,
    tick: float | None = None,
) -> AsyncGenerator[tuple[int, Event] | None]:
    """Answers every prompt of a request by `route`, concurrently, and yields events with the index of their prompt.

    The events of a prompt are its log-probabilities (only if the request asks for them), `Started`, its deltas (only if
    `live`), and the `Answer`, whose group is durable by then. None is yielded whenever nothing has happened for `tick`
    seconds. `charge` is updated with the tokens that were generated. Closing the generator aborts generation, and
    nothing of it is logged.

    Raises:
        StoreError: The group cannot be logged.
        EngineError, UserError: As raised by `Engine.draw`.
    """
    prompts = [
        _answer(
            state,
            completion_request,
            route,
            charge,
            prompt,
            live=live,
            idempotency=completion_request.idempotency_of(index),
        )
        for index, prompt in enumerate(completion_request.prompts)
    ]
    with naming_fields(completion_request.field_names):
        async with aclosing(merge(prompts, tick)) as events:
            async for event in events:
                yield event


async def _answer(
    state: AppState,
    completion_request: CompletionRequest,
    route: Route,
    charge: Charge,
    prompt: Prompt,
    *,
    live: bool,
    idempotency: str | None,
) -> AsyncGenerator[Event]:
    if idempotency is not None and (first := await state.pair_log.repeated(idempotency)) is not None:
        async for event in repeat(state.engine, completion_request, prompt, first):
            yield event
        return
    best_of_n = state.tenant_rewards.best_of_n(completion_request.tenant)
    salt = salt_of(completion_request.tenant)
    request = DrawRequest(prompt, route.version, route.best_of, completion_request.sampling, live, salt)
    if completion_request.prompt_logprobs:
        only_prompt = replace(request, n=1, deltas=False)
        prompt_logprobs = await state.engine.prompt_logprobs(only_prompt)
        charge.drawn += len(prompt_logprobs.started.token_ids)
        yield prompt_logprobs
        if not completion_request.draws_any:
            async for event in _undrawn(best_of_n, only_prompt, prompt_logprobs.started):
                yield event
            return
    drawn = _DrawnTokens(state.engine, completion_request, route, charge, live=live)
    stream = best_of_n.stream(request, keep=completion_request.n, fit=completion_request.fit)
    async with aclosing(stream) as events:
        async for event in events:
            if isinstance(event, Answer):
                answer = event
                continue
            drawn.add(event)
            if live or isinstance(event, Started):
                yield event
    group = replace(
        answer.group,
        tenant=completion_request.tenant,
        user=completion_request.user,
        request_id=completion_request.request_id,
        metadata=dict(completion_request.metadata),
        idempotency=idempotency,
        fingerprint=completion_request.fingerprint,
    )
    own_reward = state.tenant_rewards.has_own(completion_request.tenant)
    group = replace(group, unclean=why_unclean(group, own_reward=own_reward))
    if any(candidate.finish_reason == "abort" for candidate in group.served):
        raise EngineError("the engine stopped before the answer was complete; try again")
    state.metrics.answered(route, group)
    state.savings.answered(route, group)
    if answer.failure is not None:
        state.metrics.degraded(group, answer.failure)
    if completion_request.store:
        if completion_request.retry and idempotency is None and await state.pair_log.seen(group):
            group = replace(group, unclean=why_unclean(group, repeated=True))
        with span(Name.LOG, GROUP=group.id, UNCLEAN=group.unclean) as logging:
            kept = await state.pair_log.append(group)
            logging.set_attribute(Key.KEPT, kept)
        if kept is Kept.REPEATED and idempotency is not None:
            first = await state.pair_log.repeated(idempotency)
            if first is None:
                raise StoreError("the first answer to this request cannot be read at the moment")
            if not live:
                async for event in repeat(state.engine, completion_request, prompt, first):
                    yield event
                return
            completion_request.check_same(first, prompt)
            # The client already has most of this answer, so it is logged in addition to the first one.
            group = replace(group, idempotency=None, unclean=why_unclean(group, repeated=True))
            kept = await state.pair_log.append(group)
        state.metrics.logged(group, kept)
        if kept is Kept.DROPPED:
            group = replace(group, id="")
        elif kept is Kept.LOGGED and not own_reward:
            state.audits.offer(group)
    yield replace(answer, group=group)


async def _undrawn(best_of_n: BestOfN, request: DrawRequest, started: Started) -> AsyncGenerator[Started | Answer]:
    """Yields the events of a request that generates nothing. It has no group to log."""
    yield started
    draws = Draws(request, started)
    draws.add(Delta(0, "", finish_reason="length"))
    answer = await best_of_n.rank(draws)
    yield replace(answer, group=replace(answer.group, id=""))


class _DrawnTokens:
    """Adds to `charge` the tokens that the engine has generated for one prompt, or may have.

    Without deltas the engine reports a candidate's tokens only at its end. Until then, a candidate counts with the most
    tokens that it can have.
    """

    def __init__(
        self, engine: Engine, completion_request: CompletionRequest, route: Route, charge: Charge, *, live: bool
    ) -> None:
        self._context_length, self._max_tokens = engine.context_length, completion_request.sampling.max_tokens
        self._best_of, self._charge, self._live = route.best_of, charge, live
        self._longest = 0

    def add(self, event: Started | Delta) -> None:
        if isinstance(event, Started):
            self._longest = min(self._max_tokens, self._context_length - len(event.token_ids))
            self._charge.drawn += 0 if self._live else self._best_of * self._longest
        else:
            self._charge.drawn += len(event.token_ids) - (0 if self._live else self._longest)
