"""Reserves what a request needs before it is answered, and releases it afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.answering.completion_request import CompletionRequest
from service.app_state import AppState
from service.limits.rate_limits import Charge
from service.routing.router import Route


@asynccontextmanager
async def let_in(state: AppState, completion_request: CompletionRequest) -> AsyncIterator[tuple[Route, Charge]]:
    """Charges the tenant, waits until the request is admitted, and holds its version while the block runs.

    Raises:
        RateLimited: The tenant exceeds a rate limit.
        Overloaded: Too many requests are waiting, or the request has waited too long.
        UnknownVersion: The model is not served.
    """
    learned = not state.tenant_rewards.has_own(completion_request.tenant)
    draws = state.router.draws(
        completion_request.model, n=completion_request.n, best_of=completion_request.drawn, learned=learned
    )
    longest = min(max(1, completion_request.sampling.max_tokens), state.engine.context_length)
    max_tokens = completion_request.read_tokens + len(completion_request.prompts) * draws * longest
    with state.limits.charged(completion_request.tenant, max_tokens) as charge:
        async with state.admission.admit(completion_request.tenant, max_tokens):
            await state.router.admitted()
            with state.router.route(
                completion_request.model, n=completion_request.n, best_of=completion_request.drawn, learned=learned
            ) as route:
                yield route, charge
