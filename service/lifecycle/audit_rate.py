"""Determines which share of answers to audit, so that audits cost at most a share of the tokens that answers save."""

from bonbon.pairs.live.savings import Savings

ENOUGH_AUDITS = 30
"""Number of audits after which their measured cost replaces the expected one."""
LEAST = 0.001
"""Minimum share of answers to audit. Where nothing is saved, audits still have to show how good the answers are."""


def audit_rate(budget: float, *, k: int, n: int, savings: Savings | None) -> float:
    """Returns the share of answers to audit if audits may cost the share `budget` of the tokens that answers save.

    Args:
        k, n: Candidates of an answer, and of best-of-n. Until enough is measured, a candidate of the champion is taken
            to cost as much as one of the base; an audit samples n candidates of the base and, if k is 1, n of the
            champion.
    """
    saved, cost = float(n - k), float(2 * n if k == 1 else n)
    if savings is not None and savings.drawn.audits >= ENOUGH_AUDITS and savings.drawn.answers:
        drawn = savings.drawn
        saved = drawn.best_of_n_tokens / drawn.audits - drawn.answer_tokens / drawn.answers
        cost = drawn.audit_tokens / drawn.audits
    return min(1.0, max(LEAST, budget * saved / cost)) if budget else 0.0
