"""What a request takes before it is answered, and gives back however it ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.answering.completion_request import Ask
from service.answering.routing import Plan
from service.app_state import Parts
from service.auth.rate_limits import Charge


@asynccontextmanager
async def let_in(parts: Parts, ask: Ask) -> AsyncIterator[tuple[Plan, Charge]]:
    """Charge the tenant, wait for the request's turn and hold its version while the block runs.

    Raises RateLimited, Overloaded and UnknownVersion.
    """
    learnt = not parts.tenant_rewards.has_own(ask.tenant)
    draws = parts.serving.draws(ask.model, n=ask.n, best_of=ask.drawn, learnt=learnt)
    longest = min(max(1, ask.sampling.max_tokens), parts.engine.context_length)
    most = ask.read_tokens + len(ask.prompts) * draws * longest
    with parts.limits.charged(ask.tenant, most) as charge:
        async with parts.admission.admit(ask.tenant, most):
            await parts.serving.admitted()
            with parts.serving.plan(ask.model, n=ask.n, best_of=ask.drawn, learnt=learnt) as plan:
                yield plan, charge
