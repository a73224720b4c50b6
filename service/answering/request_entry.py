"""Reserves what a request needs before it is answered, and releases it afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.answering.completion_request import CompletionRequest
from service.app_state import AppState
from service.limits.rate_limits import Charge
from service.routing.router import Route


@asynccontextmanager
async def let_in(state: AppState, ask: CompletionRequest) -> AsyncIterator[tuple[Route, Charge]]:
    """Charges the tenant, waits until the request is admitted, and holds its version while the block runs.

    Raises:
        RateLimited: The tenant exceeds a rate limit.
        Overloaded: Too many requests are waiting, or the request has waited too long.
        UnknownVersion: The model is not served.
    """
    learned = not state.tenant_rewards.has_own(ask.tenant)
    draws = state.serving.draws(ask.model, n=ask.n, best_of=ask.drawn, learned=learned)
    longest = min(max(1, ask.sampling.max_tokens), state.engine.context_length)
    max_tokens = ask.read_tokens + len(ask.prompts) * draws * longest
    with state.limits.charged(ask.tenant, max_tokens) as charge:
        async with state.admission.admit(ask.tenant, max_tokens):
            await state.serving.admitted()
            with state.serving.plan(ask.model, n=ask.n, best_of=ask.drawn, learned=learned) as plan:
                yield plan, charge
