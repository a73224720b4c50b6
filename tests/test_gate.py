"""The gate: each check, on the bound that is against the version."""

from math import inf, nan

import numpy as np
import pytest
from evaluations import estimate, evaluation

from bonbon.settings import GateSettings
from bonbon.theory import best_of_n_kl
from trainer.evaluation.evaluation import Evaluation
from trainer.evaluation.gate import Check, Verdict, judge

GATE = GateSettings()


def failed(verdict: Verdict) -> list[str]:
    return [reason.check for reason in verdict.reasons if not reason.passed]


def reason(verdict: Verdict, check: str) -> Check:
    return next(reason for reason in verdict.reasons if reason.check == check)


def test_a_good_version_passes_with_a_reason_for_each_check() -> None:
    verdict = judge(evaluation(), GATE, n=8)
    assert verdict.passed
    assert [reason.check for reason in verdict.reasons] == [
        "win_rate",
        "kl",
        "length_ratio_min",
        "length_ratio_max",
        "distinct_2_ratio",
    ]
    assert reason(verdict, "win_rate").text == "win rate against the base: lower bound 0.820 is at least 0.550"


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"win_rate": estimate(0.56, 0.02)}, "win_rate"),
        ({"held_out_win_rate": estimate(0.51, 0.02)}, "held_out_win_rate"),
        ({"kl": estimate(3 * best_of_n_kl(8) - 0.01, 0.02)}, "kl"),
        ({"length_ratio": estimate(0.49)}, "length_ratio_min"),
        ({"length_ratio": estimate(2.01)}, "length_ratio_max"),
        ({"distinct_2": 0.1}, "distinct_2_ratio"),
    ],
)
def test_each_check_can_fail_alone(changes: dict[str, object], check: str) -> None:
    verdict = judge(evaluation(**changes), GATE, n=8)
    assert failed(verdict) == [check]
    assert not verdict.passed


def test_bounds_decide_and_not_point_values() -> None:
    verdict = judge(evaluation(win_rate=estimate(0.9, 0.4)), GATE, n=8)
    assert reason(verdict, "win_rate").value == pytest.approx(0.5)
    assert failed(verdict) == ["win_rate"]
    assert judge(evaluation(win_rate=estimate(0.58, 0.02)), GATE, n=8).passed


def test_a_later_round_must_beat_its_reference_and_stay_near_it() -> None:
    far_from_base = evaluation(
        reference="tiny-bonbon-0001",
        win_rate_reference=estimate(0.7),
        kl=estimate(9.0),
        kl_reference=estimate(1.0),
    )
    assert judge(far_from_base, GATE, n=8).passed
    no_better = evaluation(win_rate_reference=estimate(0.51), kl_reference=estimate(1.0))
    assert failed(judge(no_better, GATE, n=8)) == ["win_rate_reference"]


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_what_is_not_finite_fails(value: float) -> None:
    verdict = judge(evaluation(win_rate=estimate(value), kl=estimate(value), length_ratio=estimate(value)), GATE, n=8)
    assert failed(verdict) == ["win_rate", "kl", "length_ratio_min", "length_ratio_max"]
    assert "is no number" in reason(verdict, "kl").text


def test_a_verdict_survives_json() -> None:
    verdict = judge(evaluation(kl=estimate(nan)), GATE, n=8)
    stored = verdict.to_dict()
    assert stored["reasons"][1]["value"] is None
    assert Verdict.from_dict(stored).to_dict() == stored
    passed = judge(evaluation(), GATE, n=8)
    assert Verdict.from_dict(passed.to_dict()) == passed


def test_too_few_prompts_are_no_evidence_however_good_they_look() -> None:
    """The interval leans on the central limit theorem, the betting test on nothing."""
    few = judge(evaluation(win_rate_shares=[0.8, 0.9, 0.85]), GATE, n=8)
    assert failed(few) == ["p_value"]
    assert reason(few, "p_value").text.startswith("p-value of a win rate against the base of at most 0.550: ")
    many = judge(evaluation(win_rate_shares=[0.8, 0.9, 0.85] * 20), GATE, n=8)
    assert many.passed
    assert reason(many, "p_value").value < 0.01


def test_a_version_at_the_threshold_rarely_passes() -> None:
    """At most 5 % of such versions: of 300 at most 26 (P < .003 at .05)."""
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(300):
        shares = rng.choice([0.0, 0.5, 1.0], size=60, p=[0.4, 0.1, 0.5]).tolist()
        passed += reason(judge(evaluation(win_rate_shares=shares), GATE, n=8), "p_value").passed
    assert passed <= 26


def test_without_the_prompts_shares_or_a_threshold_there_is_no_such_check() -> None:
    for changes, gate in (
        ({"win_rate_shares": None}, GATE),
        ({"win_rate_shares": [0.5, 0.5]}, GateSettings(min_win_rate=0)),
    ):
        assert "p_value" not in [check.check for check in judge(evaluation(**changes), gate, n=8).reasons]


def test_an_evaluation_of_an_older_release_is_read() -> None:
    stored = evaluation().to_dict()
    del stored["win_rate_shares"]
    assert Evaluation.from_dict(stored).win_rate_shares is None
