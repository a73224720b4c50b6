"""Which share of answers is audited, so that audits cost no more than a share of what answers save."""

from bonbon.pairs.live.savings import Savings

ENOUGH_AUDITS = 30
"""Audits after which their measured cost replaces the expected one."""
LEAST = 0.001
"""Where nothing is saved, some answers are audited all the same: nobody would know otherwise how good they are."""


def audit_rate(budget: float, *, k: int, n: int, savings: Savings | None) -> float:
    """The share of answers to audit when audits may cost the share `budget` of the tokens that answers save.

    Args:
        k, n: draws for an answer, and for one of best-of-n. Until enough is measured, a draw of the champion counts as
            much as one of the base; an audit takes n draws of the base and, where k is 1, n of the champion.
    """
    saved, cost = float(n - k), float(2 * n if k == 1 else n)
    if savings is not None and savings.drawn.audits >= ENOUGH_AUDITS and savings.drawn.answers:
        drawn = savings.drawn
        saved = drawn.best_of_n_tokens / drawn.audits - drawn.answer_tokens / drawn.answers
        cost = drawn.audit_tokens / drawn.audits
    return min(1.0, max(LEAST, budget * saved / cost)) if budget else 0.0
