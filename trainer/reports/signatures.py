"""Signatures of a distillation that failed in a known way: what is seen, and what to change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from bonbon.theory import best_of_n_kl, frontier_kl
from trainer.evaluation.evaluation import Evaluation

FLAT, CONTRAST, SFT = "win_rate_flat", "contrast_dominates", "sft_dominates"
NAMES = (FLAT, CONTRAST, SFT)

WASTED_KL = 0.5
"""A win rate that could be had for less than this share of the KL spent is flat."""
LEAST_KL = 0.05
"""Nats: below it nothing has been spent."""
KL_OVER = 1.5
"""KL over best-of-n's own that only the contrast asks for."""
CHOSEN_FALL = 1.0
"""Nats by which the chosen answers have become less likely: best-of-n makes them likelier."""
LENGTHS = (0.8, 1.25)
"""Mean length over the base's; beyond it length drifts."""
MARGIN_UNDER = 0.3
"""Share of its target that a margin has at the end of a run whose contrast did its work."""


@dataclass(frozen=True, slots=True)
class Signature:
    """`seen` says by which figures it was known, `remedy` what to change."""

    name: str
    seen: str
    remedy: str


def signatures(metrics: Sequence[Mapping[str, Any]], evaluation: Evaluation | None) -> tuple[Signature, ...]:
    """Those found in a run's metrics and its evaluation; either may be missing.

    Evaluations are read on the interval bound that speaks for the version, what became of the chosen answers on
    held-out pairs where there are some.
    """
    found = (_flat(evaluation), _contrast(metrics, evaluation), _sft(metrics))
    return tuple(signature for signature in found if signature is not None)


def _flat(evaluation: Evaluation | None) -> Signature | None:
    """The KL that the frontier asks for this win rate is a small part of the KL spent."""
    if evaluation is None or not evaluation.kl.low > LEAST_KL:
        return None
    win_rate, kl = evaluation.win_rate, evaluation.kl
    needed = frontier_kl(min(win_rate.high, 1 - 1e-9))
    if needed >= WASTED_KL * kl.low:
        return None
    return Signature(
        FLAT,
        f"the win rate against the base is {win_rate.value:.3f} (at most {win_rate.high:.3f}), which takes "
        f"{needed:.2f} nats, but the policy is {kl.value:.2f} nats from the base (at least {kl.low:.2f})",
        "n is too small, the reward is exhausted, or it does not say anything about unseen prompts: look at the gain "
        "per draw (`bonbon pairs curve`), log groups of a larger n or of more prompts, or use a better reward",
    )


def _contrast(metrics: Sequence[Mapping[str, Any]], evaluation: Evaluation | None) -> Signature | None:
    """The chosen answers became less likely, or the policy is further from its reference than best-of-n would be."""
    symptoms = []
    chosen = _ends(metrics, "chosen_logprob", "held_out_") or _ends(metrics, "chosen_logprob", "")
    if chosen is not None and chosen.last < chosen.first - CHOSEN_FALL:
        symptoms.append(
            f"log pi(chosen) fell by {chosen.first - chosen.last:.1f} nats, from {chosen.first:.1f} to "
            f"{chosen.last:.1f}"
        )
    if evaluation is not None:
        kl, bound = evaluation.kl_from_reference, best_of_n_kl(evaluation.n)
        if kl.low > KL_OVER * bound:
            symptoms.append(
                f"the KL from {evaluation.reference} is {kl.value:.2f} nats (at least {kl.low:.2f}), "
                f"best-of-{evaluation.n}'s at most {bound:.2f}"
            )
        length = evaluation.length_ratio
        # Length may drift for other reasons: it is told, but proves nothing alone.
        if symptoms and (length.high < LENGTHS[0] or length.low > LENGTHS[1]):
            symptoms.append(f"answers are {length.value:.2f} times as long as the base's")
    if not symptoms:
        return None
    return Signature(
        CONTRAST,
        "; ".join(symptoms),
        "the margin is widened by making the rejected answers impossible rather than the chosen ones likely: raise "
        "train.alpha towards 1, lower train.learning_rate, train for fewer train.epochs, or log more groups",
    )


def _sft(metrics: Sequence[Mapping[str, Any]]) -> Signature | None:
    """The margin of the training pairs ends far under its target. (On held-out pairs it may for want of data.)"""
    margin, target = _ends(metrics, "margin", ""), _ends(metrics, "target", "")
    if margin is None or target is None or margin.last >= MARGIN_UNDER * target.last:
        return None
    return Signature(
        SFT,
        f"the margin between chosen and rejected is {margin.last:.1f} nats, its target {target.last:.1f}",
        "the contrast has done little: lower train.alpha, train for more train.epochs or at a higher "
        "train.learning_rate, log more groups, or use train.loss = bonbon when it was sft",
    )


class _Ends(NamedTuple):
    """Means of a metric over the first and the last tenth of what was reported."""

    first: float
    last: float


def _ends(metrics: Sequence[Mapping[str, Any]], name: str, prefix: str) -> _Ends | None:
    values = [entry[prefix + name] for entry in metrics if prefix + name in entry]
    tenth = max(1, len(values) // 10)
    return _Ends(fmean(values[:tenth]), fmean(values[-tenth:])) if values else None
