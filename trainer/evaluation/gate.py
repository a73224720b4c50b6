"""Decides whether a version may be promoted and how many draws it then answers with."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Self

from bonbon.registry.evaluation_figures import best_of
from bonbon.settings import GateSettings
from bonbon.theory import BettingTest, Estimate, best_of_n_kl
from trainer.evaluation.evaluation import BestOfK, Evaluation


@dataclass(frozen=True, slots=True)
class Check:
    """One requirement of the gate: `value` is compared with `threshold`, and `text` describes the result."""

    check: str
    value: float
    threshold: float
    passed: bool
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision. It is passed when all checks are.

    A passed version answers with the best of `k` draws, which saves the share `saved` of the tokens that an answer
    takes now.
    """

    passed: bool
    reasons: tuple[Check, ...]
    k: int | None = None
    saved: float | None = None

    @property
    def draws(self) -> str:
        """How the version answers, in words."""
        return f"the best of {self.k} draws" if self.k is not None and self.k > 1 else "one draw"

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types only; a value that is not finite becomes None."""
        values = asdict(self)
        for reason in values["reasons"]:
            reason["value"] = reason["value"] if isfinite(reason["value"]) else None
        return values | {"reasons": list(values["reasons"])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the verdict that `to_dict` wrote."""
        reasons = (
            reason | {"value": float("nan") if reason["value"] is None else reason["value"]}
            for reason in values["reasons"]
        )
        checks = tuple(Check(**reason) for reason in reasons)
        return cls(values["passed"], checks, values.get("k"), values.get("saved"))


def judge(evaluation: Evaluation, gate: GateSettings) -> Verdict:
    """Returns the gate's verdict.

    Win rates and divergences are judged by the bound of their interval that is less favourable to the version. NaN
    fails.
    """
    e = evaluation
    k, saving = _smallest_k(e, gate)
    checks = [_at_least("win rate of one draw", "win_rate", e.win_rate.low, gate.min_win_rate, "lower bound")]
    if 0 < gate.min_win_rate < 1:
        title = f"p-value of a win rate of at most {gate.min_win_rate:.3f}"
        checks.append(_at_most(title, "p_value", _p_value(e.win_rate_shares, gate.min_win_rate), gate.max_p_value))
    shortest, longest = gate.length_ratio
    max_kl = gate.max_kl_factor * best_of_n_kl(e.n)
    checks += [
        *saving,
        _at_least("gain in the objective, nats", "gain", e.gain.low, gate.min_gain, "lower bound"),
        _at_most(f"KL from {e.base}, nats", "kl", e.kl.high, max_kl, "upper bound"),
        _at_most("share of answers cut off", "truncated", e.truncated, e.base_truncated + gate.max_truncated),
        _at_least("mean length over the base's", "length_ratio_min", e.length_ratio.value, shortest),
        _at_most("mean length over the base's", "length_ratio_max", e.length_ratio.value, longest),
        _at_least("distinct-2 over the base's", "distinct_2_ratio", e.distinct_2_ratio, gate.min_distinct_ratio),
    ]
    passed = all(check.passed for check in checks)
    saved = None if k is None else 1 - k.tokens / e.served_tokens
    return Verdict(passed, tuple(checks), k.k if passed and k else None, saved if passed else None)


def _smallest_k(e: Evaluation, gate: GateSettings) -> tuple[BestOfK | None, list[Check]]:
    """Returns the smallest k that is as good as the gate's opponent, or None, and the checks that led to it."""
    served, minimum = f"{best_of(e.served_k)} of {e.served}", 0.5 - gate.margin
    opponent = served if gate.opponent == "served" else f"{best_of(e.n)} of {e.base}"
    name = f"win_rate_{gate.opponent}"
    good = [one for one in e.best_of_k if _is_as_good(one, name, minimum)]
    chosen = good[0] if good else max(e.best_of_k, key=lambda one: getattr(one, name).low)
    title = f"win rate of {best_of(chosen.k)} against {opponent}"
    checks = [_at_least(title, name, getattr(chosen, name).low, minimum, "lower bound")]
    if (held_out := getattr(chosen, f"held_out_{name}")) is not None:
        title += " by the held-out reward"
        checks.append(_at_least(title, f"held_out_{name}", held_out.high, 0.5, "upper bound"))
    title = f"share of the tokens of {served} that {best_of(chosen.k)} saves"
    saved = 1 - chosen.tokens / e.served_tokens
    if e.served != e.base and chosen.k == e.served_k and abs(saved) < gate.min_saved:
        # A better version with as many draws can still start the next round, which may lower the number of draws.
        title = f"win rate of {best_of(chosen.k)} against {served}, at the same cost"
        checks.append(_at_least(title, "better", chosen.win_rate_served.low, 0.5, "lower bound"))
    else:
        checks.append(_at_least(title, "saved", saved, gate.min_saved))
    return (chosen if good else None), checks


def _is_as_good(one: BestOfK, name: str, minimum: float) -> bool:
    """Returns whether best-of-k is as good as the opponent of the win rate `name`."""
    held_out: Estimate | None = getattr(one, f"held_out_{name}")
    win_rate: Estimate = getattr(one, name)
    return win_rate.low >= minimum and (held_out is None or held_out.high >= 0.5)


def _p_value(shares: Sequence[float], null: float) -> float:
    """Returns the p-value of a betting test over prompts. Unlike the interval, its error rate holds for any number of
    them.
    """
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
        return Check(check, value, threshold, False, f"{what} is not a number; it must be {words[0]} {threshold:.3f}")
    return Check(check, value, threshold, passed, f"{what} is {words[0] if passed else words[1]} {threshold:.3f}")
