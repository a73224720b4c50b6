"""Answers a request: samples candidates, ranks them, and logs the group."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from bonbon.best_of_n import Answer, BestOfN
from bonbon.engines.candidates import Draw, Draws
from bonbon.engines.engine import Delta, DrawRequest, Engine, PromptLogprobs, Started
from bonbon.errors import EngineError, PromptTooLong, StoreError
from bonbon.observability.tracing import Key, Name, Value, span
from bonbon.pairs.group_records import Unclean, salt_of
from bonbon.pairs.group_store import Kept
from bonbon.prompt import Prompt
from service.answering.completion_request import CompletionRequest, naming_fields
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
    request = DrawRequest(
        prompt,
        route.version,
        route.best_of,
        completion_request.sampling,
        deltas=live,
        salt=salt_of(completion_request.tenant),
    )
    if completion_request.prompt_logprobs:
        prompt_logprobs = await state.engine.prompt_logprobs(request)
        charge.drawn += len(prompt_logprobs.started.token_ids)
        yield prompt_logprobs
        if not completion_request.draws_any:
            async for event in _undrawn(best_of_n, request, prompt_logprobs.started):
                yield event
            return
    draws = Draws(route.best_of)
    with span(Name.DRAW, **_drawing(request)) as drawing:
        events = state.engine.draw(request)
        try:
            started = await _first(events)
        except PromptTooLong:
            if not completion_request.fit:
                raise
            request = await _fitted(state.engine, request)
            events = state.engine.draw(request)
            started = await _first(events)
        drawing.set(Key.INPUT_TOKENS, len(started.token_ids))
        try:
            async with aclosing(events):
                draws.add(started)
                yield started
                async for event in events:
                    draws.add(event)
                    if live:
                        yield event
        finally:
            charge.drawn += sum(_drawn(draw, request) for draw in draws.draws)
        drawing.set(Key.OUTPUT_TOKENS, sum(len(draw.token_ids) for draw in draws.draws))
    answer = await best_of_n.rank(
        prompt, draws, version=route.version, sampling=request.sampling, keep=completion_request.n
    )
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
    if own_reward and group.unclean in (None, Unclean.TIED):
        group = replace(group, unclean=Unclean.REWARD)
    if any(candidate.finish_reason == "abort" for candidate in group.served):
        raise EngineError("the engine stopped before the answer was complete; try again")
    state.metrics.answered(route, group)
    state.savings.answered(route, group)
    if answer.failure is not None:
        state.metrics.degraded(group, answer.failure)
    if completion_request.store:
        if (
            completion_request.retry
            and idempotency is None
            and group.unclean is None
            and await state.pair_log.seen(group)
        ):
            group = replace(group, unclean=Unclean.REPEATED)
        with span(Name.LOG, GROUP=group.id, UNCLEAN=group.unclean) as logging:
            kept = await state.pair_log.append(group)
            logging.set(Key.KEPT, kept)
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
            group = replace(group, idempotency=None, unclean=Unclean.REPEATED)
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
    draws = Draws(1, started)
    draws.add(Delta(0, "", finish_reason="length"))
    answer = await best_of_n.rank(request.prompt, draws, version=request.version, sampling=request.sampling)
    yield replace(answer, group=replace(answer.group, id=""))


def _drawn(draw: Draw, request: DrawRequest) -> int:
    """Returns how many tokens the engine may have generated. Without deltas it reports them only at a candidate's
    end."""
    known = request.deltas or draw.finish_reason is not None
    return len(draw.token_ids) if known else request.sampling.max_tokens


def _drawing(request: DrawRequest) -> dict[str, Value]:
    return {
        "OPERATION": "text_completion" if request.prompt.messages is None else "chat",
        "PROVIDER": "bonbon",
        "MODEL": request.version,
        "CHOICES": request.n,
        "MAX_TOKENS": request.sampling.max_tokens,
        "TEMPERATURE": request.sampling.temperature,
    }


async def _fitted(engine: Engine, request: DrawRequest) -> DrawRequest:
    """Returns `request` with max_tokens reduced to the free space in the context.

    Only the engine knows how many tokens a prompt has, and reports it when generation starts; that generation is
    aborted.

    Raises:
        PromptTooLong: The prompt fills the context.
    """
    one = replace(request, n=1, sampling=request.sampling.shortened(1))
    async with aclosing(engine.draw(one)) as events:
        started = await _first(events)
    free = engine.context_length - len(started.token_ids)
    return replace(request, sampling=request.sampling.shortened(free))


async def _first(events: AsyncGenerator[Started | Delta]) -> Started:
    async for event in events:
        if isinstance(event, Started):
            return event
    raise EngineError("the engine ended the request before it started; see its log")
