"""Tests of the estimates from an evaluation's samples, against enumeration of all possible draws."""

import random
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from trainer.evaluation import measures
from trainer.evaluation.samples import Judge, Samples, Scored, by_held_out, by_reward


def draws(rng: random.Random, count: int) -> list[Scored]:
    """Returns draws with few distinct rewards, so that there are ties, sorted as `Samples` requires."""
    made = [
        Scored(tuple(range(rng.randint(1, 9))), rng.random() < 0.3, float(rng.randrange(4)), float(rng.randrange(3)))
        for _ in range(count)
    ]
    return sorted(made, key=lambda draw: (draw.reward, rng.random()))


def some_samples(*, prompts: int = 4, version: int = 4, base: int = 6, served: int | None = None) -> list[Samples]:
    rng = random.Random(5)
    made = []
    for _ in range(prompts):
        own = draws(rng, base)
        made.append(Samples((1, 2), 1.0, draws(rng, version), own, own if served is None else draws(rng, served)))
    return made


def wins(ours: Scored, theirs: Scored, judge: Judge) -> float:
    a, b = judge(ours), judge(theirs)
    return 1.0 if a > b else 0.5 if a == b else 0.0


def best_of(candidates: Sequence[Scored], k: int) -> list[Scored]:
    """Returns the best of every set of k; candidates are in the order of the reward."""
    return [candidates[max(chosen)] for chosen in combinations(range(len(candidates)), k)]


@pytest.mark.parametrize(("served", "served_k"), [(None, 3), (None, 6), (5, 1), (5, 4)])
def test_best_of_k_is_the_mean_over_every_set_that_could_have_been_drawn(served: int | None, served_k: int) -> None:
    samples = some_samples(served=served)
    n = 3
    found = measures.best_of_k(samples, n=n, served_k=served_k, most_k=len(samples[0].version))
    assert [one.k for one in found] == [1, 2, 3, 4]
    for one in found:
        ours = {id(some): best_of(some.version, one.k) for some in samples}

        def rate(opponents: str, k: int, judge: Judge, ours: dict[int, list[Scored]] = ours) -> float:
            return fmean(
                fmean(wins(a, b, judge) for a in ours[id(some)] for b in best_of(getattr(some, opponents), k))
                for some in samples
            )

        assert one.win_rate.value == pytest.approx(rate("base", 1, by_reward))
        assert one.win_rate_best_of_n.value == pytest.approx(rate("base", n, by_reward))
        assert one.held_out_win_rate_best_of_n is not None
        assert one.held_out_win_rate_best_of_n.value == pytest.approx(rate("base", n, by_held_out))
        assert one.win_rate_served.value == pytest.approx(rate("served", served_k, by_reward))
        assert one.held_out_win_rate_served is not None
        assert one.held_out_win_rate_served.value == pytest.approx(rate("served", served_k, by_held_out))
        assert one.tokens == pytest.approx(one.k * fmean(fmean(len(d.tokens) for d in s.version) for s in samples))


def test_one_draw_and_best_of_n_of_the_base_are_those_of_enumeration() -> None:
    samples, n = some_samples(), 3
    found = measures.win_rates(samples, n)
    for judge, one, best in (
        (by_reward, "win_rate", "best_of_n_win_rate"),
        (by_held_out, "held_out_win_rate", "held_out_best_of_n_win_rate"),
    ):
        shares = [fmean(wins(a, b, judge) for a in some.version for b in some.base) for some in samples]
        assert found[one].value == pytest.approx(fmean(shares))
        # The opponent is another draw of the base, never one of the n.
        best_shares = [
            fmean(
                wins(some.base[max(chosen)], some.base[other], judge)
                for chosen in combinations(range(len(some.base)), n)
                for other in range(len(some.base))
                if other not in chosen
            )
            for some in samples
        ]
        assert found[best].value == pytest.approx(fmean(best_shares))
    assert found["win_rate_shares"] == pytest.approx(
        [fmean(wins(a, b, by_reward) for a in some.version for b in some.base) for some in samples]
    )
    gains = [found[name].value - 0.5 for name in ("held_out_win_rate", "win_rate")]
    assert found["held_out_share"].value == pytest.approx(gains[0] / gains[1])


def test_best_of_n_of_the_base_has_the_mean_reward_of_enumeration() -> None:
    samples = some_samples()
    found = measures.rewards(samples, 3)
    best = fmean(fmean(draw.reward for draw in best_of(some.base, 3)) for some in samples)
    assert found["best_of_n_reward_mean"].value == pytest.approx(best)
    base, ours = (fmean(fmean(d.reward for d in part(some)) for some in samples) for part in (_base, _version))
    assert found["recovered"].value == pytest.approx((ours - base) / (best - base))


def _base(samples: Samples) -> Sequence[Scored]:
    return samples.base


def _version(samples: Samples) -> Sequence[Scored]:
    return samples.version


def test_lengths_and_truncation_are_counted_over_all_draws() -> None:
    samples = some_samples(served=5)
    found = measures.lengths(samples, served_k=4)
    ours = [draw for some in samples for draw in some.version]
    served = [draw for some in samples for draw in some.served]
    assert found["length_mean"].value == pytest.approx(fmean(len(draw.tokens) for draw in ours))
    assert found["truncated"] == pytest.approx(fmean(draw.truncated for draw in ours))
    assert found["served_tokens"] == pytest.approx(4 * fmean(len(draw.tokens) for draw in served))


def test_without_a_held_out_reward_there_is_nothing_by_it() -> None:
    bare = [Scored((1,), False, float(reward)) for reward in range(4)]
    samples = [Samples((1,), 1.0, bare[:2], bare, bare)] * 2
    assert all(one.held_out_win_rate_served is None for one in measures.best_of_k(samples, n=2, served_k=2, most_k=1))
    assert measures.win_rates(samples, 2)["held_out_share"] is None


def test_the_interval_of_best_of_k_against_what_is_served_holds_its_error_rate() -> None:
    """The version is best-of-2 of the base: its best of k wins 2k / (2k + n) against best-of-n."""
    rng, n, runs = np.random.default_rng(1), 4, 300
    missed = np.zeros(3)
    for _ in range(runs):
        found = measures.best_of_k([uniform(rng, 2, 3, 2 * n) for _ in range(30)], n=n, served_k=n, most_k=3)
        for i, one in enumerate(found):
            truth = 2 * one.k / (2 * one.k + n)
            missed[i] += not one.win_rate_served.low <= truth <= one.win_rate_served.high
    for count in missed:
        assert stats.binom.cdf(count, runs, 0.05) < 0.999
        assert stats.binom.sf(count - 1, runs, 0.03) < 0.999


def uniform(rng: np.random.Generator, m: int, version: int, base: int) -> Samples:
    """Returns samples of a version that answers with the best of `m` draws of a base with uniform rewards."""
    ours, theirs = np.sort(rng.random(version) ** (1 / m)), np.sort(rng.random(base))
    made = [[Scored((1,), False, float(reward)) for reward in rewards] for rewards in (ours, theirs)]
    return Samples((1,), 1.0, made[0], made[1], made[1])


@pytest.mark.parametrize("length", [40.0, 200.0])
def test_the_tokens_that_let_nine_of_ten_end_are_guessed_from_what_was_cut_off(length: float) -> None:
    rng = random.Random(0)
    lengths = [rng.expovariate(1 / length) for _ in range(4000)]
    cut = length  # e^-1 of them are longer
    drawn = [Scored((0,) * int(min(one, cut) + 1), one > cut, 0.0) for one in lengths]
    enough = measures.sufficient_max_tokens(drawn)
    assert enough is not None
    assert sum(one < enough for one in lengths) / len(lengths) == pytest.approx(0.9, abs=0.03)
    assert measures.sufficient_max_tokens([Scored((0,), False, 0.0)] * 10) is None
