"""Decides whether a version may be promoted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Self

from bonbon.settings import GateSettings
from bonbon.theory import BettingTest, best_of_n_kl
from trainer.evaluation.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a version must show: `value` against `threshold`. `text` is the sentence people read."""

    check: str
    value: float
    threshold: float
    passed: bool
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Passed when every check did."""

    passed: bool
    reasons: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON's types only: a value that is not finite is None."""
        values = asdict(self)
        for reason in values["reasons"]:
            reason["value"] = reason["value"] if isfinite(reason["value"]) else None
        return values | {"reasons": list(values["reasons"])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        reasons = (
            reason | {"value": float("nan") if reason["value"] is None else reason["value"]}
            for reason in values["reasons"]
        )
        return cls(values["passed"], tuple(Check(**reason) for reason in reasons))


def judge(evaluation: Evaluation, gate: GateSettings, *, n: int) -> Verdict:
    """The gate's verdict. Win rates and KL are read on the bound that is against the version; NaN fails.

    Args:
        n: of the groups the version was trained on: its KL limit is a multiple of log n - (n - 1) / n.
    """
    e = evaluation
    checks = [_at_least("win rate against the base", "win_rate", e.win_rate.low, gate.min_win_rate, "lower bound")]
    if e.win_rate_shares is not None and 0 < gate.min_win_rate < 1:
        title = f"p-value of a win rate against the base of at most {gate.min_win_rate:.3f}"
        checks.append(_at_most(title, "p_value", _p_value(e.win_rate_shares, gate.min_win_rate), gate.max_p_value))
    if e.win_rate_reference is not None:
        title = f"win rate against the reference {e.reference}"
        checks.append(
            _at_least(title, "win_rate_reference", e.win_rate_reference.low, gate.min_win_rate_reference, "lower bound")
        )
    if e.held_out_win_rate is not None:
        title = "win rate by the held-out reward"
        checks.append(
            _at_least(title, "held_out_win_rate", e.held_out_win_rate.low, gate.min_held_out_win_rate, "lower bound")
        )
    shortest, longest = gate.length_ratio
    checks += [
        _at_most(
            f"KL from {e.reference}",
            "kl",
            e.kl_from_reference.high,
            gate.max_kl_factor * best_of_n_kl(n),
            "upper bound",
        ),
        _at_least("mean length over the base's", "length_ratio_min", e.length_ratio.value, shortest),
        _at_most("mean length over the base's", "length_ratio_max", e.length_ratio.value, longest),
        _at_least("distinct-2 over the base's", "distinct_2_ratio", e.distinct_2_ratio, gate.min_distinct_ratio),
    ]
    return Verdict(all(check.passed for check in checks), tuple(checks))


def _p_value(shares: Sequence[float], null: float) -> float:
    """By betting on prompt after prompt; unlike the interval's, its error rate holds for any number of them."""
    test = BettingTest(null)
    for share in shares:
        test.add(share)
    return test.p_value


def _at_least(title: str, check: str, value: float, threshold: float, bound: str = "") -> Check:
    passed = isfinite(value) and value >= threshold
    return _check(title, check, value, threshold, bound, passed, ("at least", "below"))


def _at_most(title: str, check: str, value: float, threshold: float, bound: str = "") -> Check:
    passed = isfinite(value) and value <= threshold
    return _check(title, check, value, threshold, bound, passed, ("at most", "above"))


def _check(
    title: str, check: str, value: float, threshold: float, bound: str, passed: bool, words: tuple[str, str]
) -> Check:
    what = f"{title}: {bound + ' ' if bound else ''}{value:.3f}"
    if not isfinite(value):
        return Check(check, value, threshold, False, f"{what} is no number; it must be {words[0]} {threshold:.3f}")
    return Check(check, value, threshold, passed, f"{what} is {words[0] if passed else words[1]} {threshold:.3f}")
