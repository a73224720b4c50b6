"""The best-of-k curve: against distributions that are known, in constant memory, and what it says."""

import asyncio
import io
import json
import math
import struct
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bonbon.cli.pairs_cli import app
from bonbon.curve.best_of_k import Curve, make_curve
from bonbon.curve.curve_picture import save
from bonbon.curve.curve_table import print_curve, sentences
from bonbon.curve.group_selection import select_groups
from bonbon.errors import UserError
from bonbon.pairs.group_records import Group, Unclean
from bonbon.pairs.pair_log import PairLog
from bonbon.prompt import Prompt
from bonbon.rewards.fake_reward import FakeReward
from bonbon.store.database import Database, open_database
from bonbon.theory import best_of_n_kl, best_of_n_win_rate, clustered_mean
from tests.support.data.groups import scored_group


async def append(log: PairLog, groups: Iterable[Group]) -> None:
    await asyncio.gather(*(log.append(group) for group in groups))


def drawn(count: int, n: int, draw: Any, seed: int = 0, **changes: Any) -> list[Group]:
    """Groups whose rewards `draw(rng, n)` gives."""
    rng = np.random.default_rng(seed)
    return [scored_group(i, rewards=tuple(map(float, draw(rng, n))), **changes) for i in range(count)]


def gumbel(rng: np.random.Generator, n: int) -> Any:
    return rng.gumbel(size=n)


async def curve_of(database: Database, *, share: float = 0.05, judge: Any = None, **selection: Any) -> Curve:
    return await make_curve(database, await select_groups(database, **selection), share=share, judge=judge)


async def test_the_curve_of_a_known_distribution(database: Database, log: PairLog) -> None:
    """Gumbel rewards have E max of k = log k + gamma. All six intervals hold but with probability < .01 at 4 errors."""
    await append(log, drawn(150, 6, gumbel))
    curve = await curve_of(database)
    assert (curve.groups, curve.kind.n, curve.smaller, curve.tied, curve.judge) == (150, 6, 0, 0, None)
    assert [point.k for point in curve.points] == [1, 2, 3, 4, 5, 6]
    for point in curve.points:
        half = (point.reward.high - point.reward.low) / 2
        assert abs(point.reward.value - math.log(point.k) - np.euler_gamma) < 2 * half
        assert point.kl == best_of_n_kl(point.k)
        assert (point.reward.count, point.gain is None, point.win_rate is None) == (150, point.k == 1, point.k == 6)
    for before, after in zip(curve.points, curve.points[1:], strict=False):
        assert after.gain is not None
        assert after.gain.value == pytest.approx(after.reward.value - before.reward.value)
        assert after.gain.high - after.gain.low < after.reward.high - after.reward.low
        assert before.win_rate is not None
        assert before.win_rate.value == pytest.approx(best_of_n_win_rate(before.k))
    assert curve.stops_at is None
    assert "No draw up to 6 is known to add less than 5%" in sentences(curve)[0]
    assert "no candidates are tied, so it is k / (k + 1)" in sentences(curve)[1]


async def test_it_says_which_n_stops_paying(database: Database, log: PairLog) -> None:
    """Uniform rewards: R_k = k/(k+1). The 6th draw adds 7 % of what five gain, the 7th 5.0 %, the 8th 3.7 %."""
    await append(log, drawn(400, 9, lambda rng, n: rng.random(n)))
    curve = await curve_of(database)
    assert curve.stops_at in (6, 7)
    assert f"More than {curve.stops_at} draws do not pay" in sentences(curve)[0]
    pays = [point.pays for point in curve.points if point.pays is not None]
    assert len(pays) == 7
    assert pays[0].low > 0
    assert (await curve_of(database, share=0.6)).stops_at == 2
    assert (await curve_of(database, share=0.0)).stops_at is None


async def test_ties_lower_the_win_rate_and_tied_groups_are_not_left_out(database: Database, log: PairLog) -> None:
    """Rewards are 0 or 1: best-of-k has 1 with probability 1 - 2^-k, and 1/2 + (1 - 2^-k - 1/2) / 2 of the wins."""
    groups = drawn(300, 5, lambda rng, n: rng.integers(0, 2, n))
    assert any(group.unclean is Unclean.TIED for group in groups)
    await append(log, groups)
    curve = await curve_of(database)
    assert curve.groups == 300
    assert curve.tied == pytest.approx(0.5, abs=0.05)
    for point in curve.points:
        assert abs(point.reward.value - (1 - 0.5**point.k)) < point.reward.high - point.reward.low
        if point.win_rate is not None:
            expected = 0.5 + (0.5 - 0.5**point.k) / 2
            assert abs(point.win_rate.value - expected) <= point.win_rate.high - point.win_rate.low + 1e-9
    assert "lowered by ties (5" in sentences(curve)[1] or "lowered by ties (4" in sentences(curve)[1]


async def test_the_prompt_is_the_cluster(database: Database, log: PairLog) -> None:
    """Twenty prompts of five groups each, differing in difficulty: the interval is that of their twenty means."""
    rng = np.random.default_rng(0)
    levels = rng.normal(0, 3, 20)
    groups = [
        scored_group(i, rewards=tuple(levels[i % 20] + rng.normal(size=3)), prompt=Prompt.user(f"question {i % 20}"))
        for i in range(100)
    ]
    await append(log, groups)
    first = (await curve_of(database)).points[0].reward
    means = [float(np.mean([[c.reward for c in g.candidates] for g in groups[p::20]])) for p in range(20)]
    expected = clustered_mean(means, 100)
    assert first.clusters == 20
    assert (first.value, first.low, first.high) == pytest.approx((expected.value, expected.low, expected.high))


async def test_groups_that_belong_together_are_chosen(database: Database, log: PairLog) -> None:
    for groups in (
        drawn(3, 4, gumbel, reward_version="old"),
        drawn(6, 4, gumbel, version="v1"),
        drawn(5, 4, gumbel),
        drawn(2, 2, gumbel),
        drawn(1, 8, gumbel),
        drawn(9, 4, gumbel, unclean=Unclean.SAMPLING),
        drawn(2, 4, gumbel, version="v2"),
    ):
        for group in groups:
            await log.append(group)
    selection = await select_groups(database)
    assert (selection.kind.version, selection.kind.reward.version, selection.kind.n) == ("tiny", "1", 4)
    assert (selection.groups, selection.smaller) == (6, 2)
    curve = await make_curve(database, selection)
    assert (curve.groups, curve.smaller) == (6, 2)
    assert (await select_groups(database, version="v1")).groups == 6
    assert (await select_groups(database, n=2)).groups == 8
    assert (await select_groups(database, newest=3)).kind.version == "v2"
    with pytest.raises(UserError, match=r"n = 8 needs two .* has 1; it has groups of 2 \(2\), 4 \(5\), 8 \(1\)"):
        await select_groups(database, n=8)
    with pytest.raises(UserError, match="no scored group of two or more draws of version 'v3'"):
        await select_groups(database, version="v3")


async def test_one_prompt_says_nothing_of_others(database: Database, log: PairLog) -> None:
    await append(log, drawn(4, 3, gumbel, prompt=Prompt.user("the same")))
    with pytest.raises(UserError, match="all groups have the same prompt"):
        await curve_of(database)


async def test_another_judge_scores_the_logged_candidates(database: Database, log: PairLog) -> None:
    """A judge that is indifferent to the reward sees no gain; one that reads it sees all of it."""
    groups = drawn(200, 5, gumbel)
    by_text = {c.text: c.reward or 0.0 for group in groups for c in group.candidates}
    unread = drawn(3, 5, gumbel, seed=9, prompt=Prompt(token_ids=(1, 2)))
    await append(log, [*groups, *unread])
    blind = await curve_of(database, judge=FakeReward())
    assert (blind.judge, blind.judged, blind.groups) == ("fake", 200, 203)
    for point in blind.points[:-1]:
        assert point.judge_win_rate is not None
        assert abs(point.judge_win_rate.value - 0.5) <= point.judge_win_rate.high - point.judge_win_rate.low + 1e-9
    assert "3 groups have prompts in token ids, which fake cannot read." in sentences(blind)
    seeing = await curve_of(database, judge=FakeReward(lambda prompt, text: by_text[text]))
    for point in seeing.points[:-1]:
        assert point.judge_win_rate is not None
        assert point.judge_win_rate.value == pytest.approx(best_of_n_win_rate(point.k))
    last = seeing.points[-1].judge_reward
    assert last is not None
    assert last.value == pytest.approx(np.mean([max(c.reward or 0.0 for c in group.candidates) for group in groups]))


async def test_a_long_log_is_read_in_constant_memory(database: Database, log: PairLog) -> None:
    """Four times the groups may not take half as much memory again."""
    peaks = []
    for count in (220, 880):
        await append(log, drawn(count, 4, gumbel, version=f"v{count}"))
        selection = await select_groups(database, version=f"v{count}")
        tracemalloc.start()
        curve = await make_curve(database, selection)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert curve.groups == count
    assert peaks[1] < 1.5 * peaks[0]


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A data directory with 60 groups of six."""

    async def work() -> None:
        async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
            log = PairLog(database)
            await log.start()
            await append(log, drawn(60, 6, gumbel))
            await log.stop()

    asyncio.run(work())
    return tmp_path


def test_the_command_prints_a_table_and_draws_a_picture(logged: Path) -> None:
    picture = logged / "curve.png"
    done = CliRunner().invoke(app, ["curve", "--data-dir", str(logged), "--png", str(picture)])
    assert done.exit_code == 0, done.output
    assert "60 groups of tiny with 6 candidates or more, scored by helpful 1" in done.output
    assert "0.857 at most" in done.output
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert width > height > 300


def test_the_command_prints_json_with_a_judge(logged: Path) -> None:
    arguments = ["curve", "--data-dir", str(logged), "--json", "--judge", "fake:", "--n", "3", "--version", "tiny"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["kind"] == {"version": "tiny", "reward": {"name": "helpful", "version": "1"}, "n": 3}
    assert (found["judge"], found["judged"], len(found["points"])) == ("fake", 60, 3)
    assert found["points"][0]["gain"] is None
    assert found["points"][1]["judge_win_rate"]["count"] == 60


async def test_a_picture_goes_where_it_can_be_written(database: Database, log: PairLog, tmp_path: Path) -> None:
    await append(log, drawn(20, 3, gumbel))
    curve = await curve_of(database, judge=FakeReward())
    save(curve, tmp_path / "curve.png")
    for path in (tmp_path / "nowhere" / "curve.png", tmp_path / "curve.txt"):
        with pytest.raises(UserError, match=r"name a \.png file"):
            save(curve, path)
    out = io.StringIO()
    print_curve(Console(file=out, width=160), curve)
    assert "judge's win rate" in out.getvalue()
