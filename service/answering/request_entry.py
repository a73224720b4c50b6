"""What a request takes before it is answered, and gives back however it ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.answering.completion_request import CompletionRequest
from service.app_state import AppState
from service.limits.rate_limits import Charge
from service.routing.router import Route


@asynccontextmanager
async def let_in(state: AppState, ask: CompletionRequest) -> AsyncIterator[tuple[Route, Charge]]:
    """Charge the tenant, wait for the request's turn and hold its version while the block runs.

    Raises RateLimited, Overloaded and UnknownVersion.
    """
    learnt = not state.tenant_rewards.has_own(ask.tenant)
    draws = state.serving.draws(ask.model, n=ask.n, best_of=ask.drawn, learnt=learnt)
    longest = min(max(1, ask.sampling.max_tokens), state.engine.context_length)
    most = ask.read_tokens + len(ask.prompts) * draws * longest
    with state.limits.charged(ask.tenant, most) as charge:
        async with state.admission.admit(ask.tenant, most):
            await state.serving.admitted()
            with state.serving.plan(ask.model, n=ask.n, best_of=ask.drawn, learnt=learnt) as plan:
                yield plan, charge
