"""Tests of the gate: each check, on the less favourable bound, and the number of draws that it chooses."""

from math import inf, nan

import numpy as np
import pytest

from bonbon.settings import GateSettings
from bonbon.theory import best_of_n_kl
from tests.support.models.evaluations import best_of_k, estimate, evaluation
from trainer.evaluation import measures
from trainer.evaluation.gate import Check, Verdict, judge
from trainer.evaluation.samples import Samples, Scored

GATE = GateSettings()
CHAMPION = {"served": "tiny-bonbon-0000", "served_k": 2, "served_tokens": 44.9}
"""The best of two of this champion is better than best-of-8 of the base."""
ONE_DRAW = {"served": "tiny-bonbon-0000", "served_k": 1, "served_tokens": 21.9}


def failed(verdict: Verdict) -> list[str]:
    return [reason.check for reason in verdict.reasons if not reason.passed]


def reason(verdict: Verdict, check: str) -> Check:
    return next(reason for reason in verdict.reasons if reason.check == check)


def test_a_good_version_passes_with_a_reason_for_each_check() -> None:
    verdict = judge(evaluation(), GATE)
    assert verdict.passed
    assert [reason.check for reason in verdict.reasons] == [
        "win_rate",
        "p_value",
        "win_rate_best_of_n",
        "saved",
        "gain",
        "kl",
        "truncated",
        "length_ratio_min",
        "length_ratio_max",
        "distinct_2_ratio",
    ]
    assert reason(verdict, "win_rate").text == "win rate of one draw: lower bound 0.820 is at least 0.500"
    assert reason(verdict, "win_rate_best_of_n").text == (
        "win rate of best-of-2 against best-of-8 of tiny: lower bound 0.510 is at least 0.470"
    )
    assert reason(verdict, "saved").text == (
        "share of the tokens of best-of-8 of tiny that best-of-2 saves: 0.725 is at least 0.050"
    )


def test_the_smallest_k_that_is_as_good_as_best_of_n_is_chosen() -> None:
    for margin, k in ((0.0, 2), (0.03, 2), (0.11, 1)):
        verdict = judge(evaluation(), GateSettings(margin=margin))
        assert (verdict.passed, verdict.k) == (True, k)
        assert verdict.saved == pytest.approx(1 - 22 * k / 160)
    wider = evaluation(best_of_k=best_of_k(0.42, 0.53, 0.6, 0.64, half=0.1))
    assert judge(wider, GATE).k == 3  # its lower bound decides, .50, and not the .53 of two draws


def test_a_version_that_is_worse_than_best_of_n_at_every_k_is_refused() -> None:
    verdict = judge(evaluation(best_of_k=best_of_k(0.2, 0.3, 0.4, 0.45)), GATE)
    assert failed(verdict) == ["win_rate_best_of_n"]
    assert (verdict.k, verdict.saved) == (None, None)
    assert "win rate of best-of-4 against best-of-8 of tiny: lower bound 0.430 is below 0.470" in (
        reason.text for reason in verdict.reasons
    )


def test_a_version_that_saves_nothing_is_refused_for_that() -> None:
    """The version is as good with seven draws of 22 tokens, and 160 tokens are drawn now."""
    verdict = judge(evaluation(best_of_k=best_of_k(0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)), GATE)
    assert failed(verdict) == ["saved"]
    assert (verdict.k, verdict.saved) == (None, None)
    assert reason(verdict, "saved").text == (
        "share of the tokens of best-of-8 of tiny that best-of-7 saves: 0.037 is below 0.050"
    )


def test_a_version_whose_answers_are_longer_saves_less() -> None:
    """Where one draw is served, one draw saves nothing unless it is shorter."""
    one = ONE_DRAW | {"served_tokens": 20.0}
    longer = judge(evaluation(best_of_k=best_of_k(0.6, 0.7), **one), GATE)
    assert failed(longer) == ["saved"]
    assert "the tokens of one draw of tiny-bonbon-0000 that one draw saves: -0.100" in reason(longer, "saved").text
    shorter = judge(evaluation(best_of_k=best_of_k(0.6, 0.7, length=15.0), **one), GATE)
    assert (shorter.k, shorter.saved) == (1, 0.25)


def test_one_draw_that_is_as_good_as_best_of_n_replaces_a_champion_that_is_better() -> None:
    """What a user pays for with n draws is what one draw has to give, not what two draws of a good version give."""
    measured = evaluation(best_of_k=best_of_k(0.5, 0.7, served=(0.3, 0.5)), **CHAMPION)
    verdict = judge(measured, GATE)
    assert (verdict.passed, verdict.k) == (True, 1)
    assert verdict.saved == pytest.approx(1 - 22 / 44.9)
    assert reason(verdict, "win_rate_best_of_n").text == (
        "win rate of one draw against best-of-8 of tiny: lower bound 0.480 is at least 0.470"
    )


def test_what_is_served_can_be_the_opponent() -> None:
    gate = GateSettings(opponent="served")
    measured = evaluation(best_of_k=best_of_k(0.5, 0.7, served=(0.3, 0.5)), **CHAMPION)
    verdict = judge(measured, gate)
    assert failed(verdict) == ["better"]  # two draws are as good as the champion's two, but not better
    assert reason(verdict, "win_rate_served").text == (
        "win rate of best-of-2 against best-of-2 of tiny-bonbon-0000: lower bound 0.480 is at least 0.470"
    )
    shorter = evaluation(best_of_k=best_of_k(0.5, 0.7, served=(0.3, 0.5), length=15.0, held_out=0.47), **CHAMPION)
    assert failed(judge(shorter, gate)) == ["held_out_win_rate_served"]


def test_a_better_version_with_as_many_draws_as_the_champion_is_worth_promoting() -> None:
    better = judge(evaluation(best_of_k=best_of_k(0.4, 0.53, 0.7), **CHAMPION), GATE)
    assert (better.passed, better.k) == (True, 2)
    as_good = judge(evaluation(best_of_k=best_of_k(0.4, 0.51, 0.7), **CHAMPION), GATE)
    assert failed(as_good) == ["better"]
    longer = judge(evaluation(best_of_k=best_of_k(0.4, 0.53, length=30.0), **CHAMPION), GATE)
    assert failed(longer) == ["saved"]
    # Best-of-n of the base is no version that a round could start from in its place.
    base = judge(evaluation(best_of_k=best_of_k(0.3, 0.53, length=80.0), served_k=2, served_tokens=160.0), GATE)
    assert failed(base) == ["saved"]


def test_where_one_draw_is_served_a_better_one_is_worth_promoting() -> None:
    better = judge(evaluation(best_of_k=best_of_k(0.53, 0.7), **ONE_DRAW), GATE)
    assert (better.passed, better.k) == (True, 1)
    as_good = judge(evaluation(best_of_k=best_of_k(0.51, 0.7), **ONE_DRAW), GATE)
    assert failed(as_good) == ["better"]
    assert reason(as_good, "better").text == (
        "win rate of one draw against one draw of tiny-bonbon-0000, at the same cost: lower bound 0.490 is below 0.500"
    )
    more_draws = judge(evaluation(best_of_k=best_of_k(0.4, 0.7), **ONE_DRAW), GATE)
    assert failed(more_draws) == ["saved"]


def test_the_held_out_reward_may_contradict_a_k() -> None:
    """It need not prove the version as good, but must not show that it is worse."""
    assert judge(evaluation(best_of_k=best_of_k(0.42, 0.53, held_out=0.485)), GATE).k == 2
    verdict = judge(evaluation(best_of_k=best_of_k(0.42, 0.53, held_out=0.47)), GATE)
    assert failed(verdict) == ["held_out_win_rate_best_of_n"]
    assert (
        "by the held-out reward: upper bound 0.490 is below 0.500"
        in reason(verdict, "held_out_win_rate_best_of_n").text
    )


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"win_rate": estimate(0.51, 0.02)}, "win_rate"),
        ({"win_rate_shares": [0.5, 0.51] * 100}, "p_value"),
        ({"gain": estimate(0.1, 0.2)}, "gain"),
        ({"kl": estimate(2 * best_of_n_kl(8) - 0.01, 0.02)}, "kl"),
        ({"truncated": 0.08, "base_truncated": 0.02}, "truncated"),
        ({"length_ratio": estimate(0.49)}, "length_ratio_min"),
        ({"length_ratio": estimate(2.01)}, "length_ratio_max"),
        ({"distinct_2": 0.1}, "distinct_2_ratio"),
    ],
)
def test_each_check_can_fail_alone(changes: dict[str, object], check: str) -> None:
    verdict = judge(evaluation(**changes), GATE)
    assert failed(verdict) == [check]
    assert not verdict.passed
    assert (verdict.k, verdict.saved) == (None, None)


def test_thresholds_are_those_of_the_settings() -> None:
    measured = evaluation(kl=estimate(2.0), length_ratio=estimate(2.5), truncated=0.2, base_truncated=0.1)
    assert failed(judge(measured, GateSettings(max_kl_factor=1.0))) == ["kl", "truncated", "length_ratio_max"]
    assert judge(measured, GateSettings(max_truncated=0.2, length_ratio=(0.1, 3.0))).passed
    assert failed(judge(evaluation(), GateSettings(min_saved=0.8))) == ["saved"]
    assert failed(judge(evaluation(), GateSettings(min_gain=1.6))) == ["gain"]


def test_bounds_decide_and_not_point_values() -> None:
    verdict = judge(evaluation(win_rate=estimate(0.9, 0.45)), GATE)
    assert reason(verdict, "win_rate").value == pytest.approx(0.45)
    assert failed(verdict) == ["win_rate"]


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_what_is_not_finite_fails(value: float) -> None:
    changes = {name: estimate(value) for name in ("win_rate", "gain", "kl", "length_ratio")}
    verdict = judge(evaluation(**changes, best_of_k=best_of_k(value, value)), GATE)
    assert not verdict.passed
    missing = ["win_rate", "win_rate_best_of_n", "gain", "kl", "length_ratio_min", "length_ratio_max"]
    # An infinite win rate does not count as a number either.
    assert failed(verdict) == missing
    assert "is not a number" in reason(verdict, "kl").text


def test_a_verdict_survives_json() -> None:
    verdict = judge(evaluation(kl=estimate(nan)), GATE)
    stored = verdict.to_dict()
    assert next(reason for reason in stored["reasons"] if reason["check"] == "kl")["value"] is None
    assert Verdict.from_dict(stored).to_dict() == stored
    passed = judge(evaluation(), GATE)
    assert Verdict.from_dict(passed.to_dict()) == passed


def test_a_verdict_of_an_older_release_is_read() -> None:
    stored = judge(evaluation(), GATE).to_dict()
    del stored["k"], stored["saved"]
    assert (Verdict.from_dict(stored).k, Verdict.from_dict(stored).passed) == (None, True)


def test_too_few_prompts_are_no_evidence_however_good_they_look() -> None:
    """The interval relies on the central limit theorem, the betting test does not."""
    few = judge(evaluation(win_rate_shares=[0.8, 0.9, 0.85]), GATE)
    assert failed(few) == ["p_value"]
    assert reason(few, "p_value").text.startswith("p-value of a win rate of at most 0.500: ")
    many = judge(evaluation(win_rate_shares=[0.8, 0.9, 0.85] * 20), GATE)
    assert many.passed
    assert reason(many, "p_value").value < 0.01


def test_a_version_at_the_threshold_rarely_passes() -> None:
    """At most 5 % of such versions pass: of 300 at most 26 (P < .003 at .05)."""
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(300):
        shares = rng.choice([0.0, 0.5, 1.0], size=60, p=[0.45, 0.1, 0.45]).tolist()
        passed += reason(judge(evaluation(win_rate_shares=shares), GATE), "p_value").passed
    assert passed <= 26


def test_without_a_threshold_for_the_win_rate_there_is_no_p_value() -> None:
    verdict = judge(evaluation(win_rate_shares=[0.5, 0.5]), GateSettings(min_win_rate=0))
    assert "p_value" not in [check.check for check in verdict.reasons]


@pytest.mark.parametrize("k", [1, 3])
def test_a_k_that_is_worse_than_the_margin_allows_rarely_answers(k: int) -> None:
    """The version is best-of-2 of the base, its best of k wins 2k / (2k + n), which the margin puts just out of reach.

    One-sided bounds of 2.5 % let 7.5 of 300 through, and 16 with P < .003; the next k is good enough nearly always.
    """
    n, runs = 12, 300
    rng = np.random.default_rng(k)
    gate = GateSettings(margin=0.5 - 2 * k / (2 * k + n) - 1e-9)
    chosen = [_chosen(rng, gate, n) for _ in range(runs)]
    assert sum(one is not None and one <= k for one in chosen) <= 15
    assert sum(one is not None for one in chosen) > 0.95 * runs


def _chosen(rng: np.random.Generator, gate: GateSettings, n: int, prompts: int = 40) -> int | None:
    samples = []
    for _ in range(prompts):
        version, base = np.sort(rng.random(8) ** 0.5), np.sort(rng.random(2 * n))
        ours, theirs = ([Scored((1,), False, float(reward)) for reward in rewards] for rewards in (version, base))
        samples.append(Samples((1,), 1.0, ours, theirs, theirs))
    found = measures.best_of_k(samples, n=n, served_k=n, most_k=8)
    return judge(evaluation(best_of_k=found, n=n, served_k=n), gate).k
