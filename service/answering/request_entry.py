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

    While a request waits, another version may become champion that samples more or fewer candidates. The request is
    then charged for the candidates of this version. What it does not need is returned; if it needs more, it waits
    again, as the next one, and for no longer than `service.max_wait` in all.

    Raises:
        RateLimited: The tenant exceeds a rate limit.
        Overloaded: Too many requests are waiting, or the request has waited too long.
        UnknownVersion: The model is not served.
    """
    tenant, model, n, best_of = (
        completion_request.tenant,
        completion_request.model,
        completion_request.n,
        completion_request.drawn,
    )
    learned = not state.tenant_rewards.has_own(tenant)
    draws = state.router.draws(model, n=n, best_of=best_of, learned=learned)
    with state.limits.charged(tenant, _most_tokens(state, completion_request, draws)) as charge:
        async with state.admission.admit(tenant, charge.tokens) as reservation:
            while True:
                await state.router.admitted()
                with state.router.route(model, n=n, best_of=best_of, learned=learned) as route:
                    needed = _most_tokens(state, completion_request, route.best_of)
                    state.limits.correct(charge, needed)
                    if needed <= reservation.tokens:
                        state.admission.reduce(reservation, needed)
                        yield route, charge
                        return
                await state.admission.enlarge(reservation, needed)


def _most_tokens(state: AppState, completion_request: CompletionRequest, draws: int) -> int:
    """Returns how many tokens a request may use if it samples `draws` candidates for each prompt."""
    longest = min(max(1, completion_request.sampling.max_tokens), state.engine.context_length)
    return completion_request.read_tokens + len(completion_request.prompts) * draws * longest
