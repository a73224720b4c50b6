"""From what is asked to an HTTP response: a whole body, or a stream."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from time import perf_counter

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bonbon.errors import BonbonError
from service import sse
from service.answering import answer
from service.ask import Ask
from service.disconnect import unless_disconnected
from service.parts import Parts
from service.rendering.base import Rendering
from service.serving import Plan

Render = Callable[[Plan], Rendering]


async def respond(request: Request, parts: Parts, ask: Ask, render: Render, *, stream: bool) -> Response:
    """Answer `ask` as `render` writes it. A client that disconnects aborts every draw.

    Raises what `service.answering.answer` raises, as long as nothing has been sent.
    """
    limits = parts.settings.service
    ask.limit(max_best_of=limits.max_best_of, max_prompts=limits.max_prompts)
    if ask.store:
        parts.pair_log.check()
    response: Response
    if stream:
        response = await sse.EventStream.open(_events(parts, ask, render), request.receive, parts.cut_off)
    else:
        response = await unless_disconnected(request.receive, _whole(parts, ask, render), parts.cut_off)
    response.headers.update(parts.limits.headers(ask.tenant))
    return response


@asynccontextmanager
async def _let_in(parts: Parts, ask: Ask) -> AsyncIterator[tuple[Plan, Callable[[Rendering], None]]]:
    """Charge the tenant, wait for the request's turn and hold its version; the function settles with what was drawn.

    Raises RateLimited and Overloaded. A request that fails is paid back; one whose client leaves is not.
    """
    most = _most_tokens(parts, ask)
    parts.limits.charge(ask.tenant, most)
    try:
        async with parts.admission.admit(ask.tenant, most):
            await parts.serving.admitted()
            with parts.serving.plan(ask.model, n=ask.n, best_of=ask.drawn, learnt=_learnt(parts, ask)) as plan:
                yield plan, lambda rendering: parts.limits.refund(ask.tenant, most - rendering.tokens_drawn)
    except BonbonError:
        parts.limits.refund(ask.tenant, most, request=True)
        raise


def _most_tokens(parts: Parts, ask: Ask) -> int:
    draws = parts.serving.draws(ask.model, n=ask.n, best_of=ask.drawn, learnt=_learnt(parts, ask))
    return len(ask.prompts) * draws * min(ask.sampling.max_tokens, parts.engine.context_length)


def _learnt(parts: Parts, ask: Ask) -> bool:
    return not parts.tenant_rewards.has_own(ask.tenant)


async def _whole(parts: Parts, ask: Ask, render: Render) -> Response:
    async with _let_in(parts, ask) as (plan, settle):
        rendering = render(plan)
        async with aclosing(answer(parts, ask, plan)) as events:
            async for item in events:
                if item is not None:
                    rendering.note(*item)
        settle(rendering)
    return JSONResponse(rendering.whole())


async def _events(parts: Parts, ask: Ask, render: Render) -> AsyncGenerator[bytes]:
    """The first item comes when every prompt has been read, or after one ping interval; the plan is held to the end."""
    start: float | None = perf_counter()
    async with aclosing(parts.serving.admission(parts.settings.service.ping_interval)) as ticks:
        async for _ in ticks:
            yield sse.comment("waiting for other weights")
    async with _let_in(parts, ask) as (plan, settle):
        rendering = render(plan)
        live = plan.best_of == 1
        ping = sse.comment(f"drawing {plan.best_of} candidate{'' if live else 's'}")
        held = b"" if live else ping
        async with aclosing(answer(parts, ask, plan, live=live, tick=parts.settings.service.ping_interval)) as events:
            async for item in events:
                held += ping if item is None else b"".join(map(sse.data, rendering.chunks(*item)))
                if item is None or len(rendering.started) == len(ask.prompts):
                    yield held
                    held = b""
                if start is not None and rendering.has_text:
                    parts.metrics.first_token(plan, perf_counter() - start)
                    start = None
        settle(rendering)
        yield b"".join(map(sse.data, rendering.usage_chunks())) + sse.DONE
