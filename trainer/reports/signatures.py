"""Detects known ways in which a distillation fails, with the evidence and a remedy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from bonbon.theory import frontier_kl
from trainer.evaluation.evaluation import Evaluation

FLAT, OVERFITTED, DEPARTED, TRUNCATED, HACKED, UNDERFITTED = (
    "win_rate_flat",
    "learnt_by_heart",
    "left_the_base",
    "truncated",
    "reward_hacking",
    "underfitted",
)
NAMES = (FLAT, OVERFITTED, DEPARTED, TRUNCATED, HACKED, UNDERFITTED)

WASTED_KL = 0.5
"""A version is flat when its win rate could be had for less than this share of the KL spent."""
MIN_KL = 0.05
"""In nats. Below it, no KL worth mentioning has been spent."""
MARGIN_OVER = 3.0
"""Ratio of the margin on training groups to that on validation groups from which the training groups are memorised."""
MIN_MARGIN = 1.0
"""In nats. Smaller margins on training groups are not a sign of anything."""
MAX_TRUNCATED = 0.1
"""The share of truncated answers above which a signature is reported."""
HELD_OUT_LOST = 0.5
"""Ratio of the version's held-out share to best-of-n's below which it has learnt the reward's errors."""
MARGIN_UNDER = 0.15
"""Share of its target below which the final margin of the training groups means that little was learnt."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A failure that was found: `seen` is the evidence in figures, `remedy` the recommended change."""

    name: str
    seen: str
    remedy: str


def signatures(metrics: Sequence[Mapping[str, Any]], evaluation: Evaluation | None) -> tuple[Signature, ...]:
    """Returns the signatures found in a run's metrics and its evaluation; either may be missing.

    Estimates are judged by the bound of their interval that is more favourable to the version.
    """
    found = [_overfitted(metrics), _departed(metrics), _underfitted(metrics)]
    if evaluation is not None:
        found += [_flat(evaluation), _truncated(evaluation), _hacked(evaluation)]
    return tuple(signature for signature in found if signature is not None)


def _flat(evaluation: Evaluation) -> Signature | None:
    """The win rate could be reached with a small part of the KL spent."""
    win_rate, kl = evaluation.win_rate, evaluation.kl
    if not kl.low > MIN_KL:
        return None
    needed = frontier_kl(min(win_rate.high, 1 - 1e-9))
    if needed >= WASTED_KL * kl.low:
        return None
    return Signature(
        FLAT,
        f"the win rate against the base is {win_rate.value:.3f} (at most {win_rate.high:.3f}), which takes "
        f"{needed:.2f} nats, but the policy is {kl.value:.2f} nats from the base (at least {kl.low:.2f})",
        "let the policy learn from its own draws (train.refine), log groups for more different prompts, or use a "
        "reward that says more about prompts it has not seen",
    )


def _overfitted(metrics: Sequence[Mapping[str, Any]]) -> Signature | None:
    """The margin of the training groups is far above that of validation groups."""
    train, validation = _ends(metrics, "margin"), _ends(metrics, "validation_margin")
    if train is None or validation is None or train.last < MIN_MARGIN:
        return None
    if train.last <= MARGIN_OVER * max(validation.last, 0.0):
        return None
    return Signature(
        OVERFITTED,
        f"best and worst of the training groups are {train.last:.1f} nats apart at the end, and those of validation "
        f"groups {validation.last:.1f}",
        "the policy has memorised the groups: lower train.epochs or train.learning_rate, or log groups for more "
        "different prompts",
    )


def _departed(metrics: Sequence[Mapping[str, Any]]) -> Signature | None:
    """Logged groups promise a gain, but fresh draws of the policy show none."""
    promised, drawn = _last(metrics, "validation_gain"), _last(metrics, "interpolation_gain")
    share = _last(metrics, "interpolation_share")
    if promised is None or drawn is None or share is None or promised <= 0 or (share > 0 and drawn > 0.25 * promised):
        return None
    return Signature(
        DEPARTED,
        f"validation groups promised a gain of {promised:.2f} nats, and draws of the policy gained {drawn:.2f} at "
        f"{share:.0%} of the way from the base",
        "the policy generates text that is unlikely under the base: lower train.learning_rate, raise "
        "train.sft_weight, or let it learn from its own draws (train.refine)",
    )


def _underfitted(metrics: Sequence[Mapping[str, Any]]) -> Signature | None:
    """The final margin of the training groups is far below its target."""
    margin, target = _ends(metrics, "margin"), _ends(metrics, "target")
    if margin is None or target is None or margin.last >= MARGIN_UNDER * target.last:
        return None
    return Signature(
        UNDERFITTED,
        f"best and worst of the training groups are {margin.last:.1f} nats apart, and the loss asks for "
        f"{target.last:.1f}",
        "little was learnt: raise train.learning_rate or train.epochs, or log more groups",
    )


def _truncated(evaluation: Evaluation) -> Signature | None:
    """Many answers were truncated, and the reward scored them as if they were complete."""
    worst = max(evaluation.truncated, evaluation.base_truncated)
    if worst <= MAX_TRUNCATED:
        return None
    enough = evaluation.sufficient_max_tokens
    remedy = f"about {enough} tokens would let nine of ten end" if enough else "raise it until nine of ten end"
    return Signature(
        TRUNCATED,
        f"{evaluation.truncated:.0%} of the version's answers and {evaluation.base_truncated:.0%} of the base's were "
        f"cut off at max_tokens = {evaluation.max_tokens}",
        f"the reward judges unfinished answers: raise max_tokens ({remedy})",
    )


def _hacked(evaluation: Evaluation) -> Signature | None:
    """The share of the gain that the held-out reward confirms is far lower for the version than for best-of-n."""
    ours, best = evaluation.held_out_share, evaluation.best_of_n_held_out_share
    if ours is None or best is None or not ours.high < HELD_OUT_LOST * best.value:
        return None
    return Signature(
        HACKED,
        f"by the held-out reward the version gains {ours.value:.0%} of what it gains by the reward (at most "
        f"{ours.high:.0%}), best-of-{evaluation.n} {best.value:.0%}",
        "it has learnt the reward's errors: lower train.kl, or use a better reward or a sum of several",
    )


class _Ends(NamedTuple):
    """Means of a metric over the first and the last tenth of its values."""

    first: float
    last: float


def _ends(metrics: Sequence[Mapping[str, Any]], name: str) -> _Ends | None:
    """Returns the means of a metric of the offline stage, whose groups stay the same."""
    values = [entry[name] for entry in metrics if name in entry and entry.get("stage", 0) == 0]
    tenth = max(1, len(values) // 10)
    return _Ends(fmean(values[:tenth]), fmean(values[-tenth:])) if values else None


def _last(metrics: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((entry[name] for entry in reversed(metrics) if name in entry), None)
