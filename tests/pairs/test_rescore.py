"""Tests of scoring groups again with another reward or version, on SQLite and PostgreSQL."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from bonbon.cli.pairs_cli import app
from bonbon.curve.group_selection import select_groups
from bonbon.engines.engine import Sampling
from bonbon.errors import RewardError
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.purge import purge
from bonbon.pairs.group_records import TRAINING, Group, Unclean
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.ranking import why_unclean
from bonbon.pairs.reading.newest_reward import newest_reward
from bonbon.pairs.reading.reader import RewardKey
from bonbon.pairs.reading.scored_groups import Kind
from bonbon.pairs.reading.training_groups import training_groups
from bonbon.pairs.rescoring.earlier_scores import read_earlier
from bonbon.pairs.rescoring.rescore import AT_ONCE, MAX_FAILURES, Scope, count_rescorable, rescore
from bonbon.prompt import Message, Prompt
from bonbon.registry.registry import Registry
from bonbon.rewards.fake_reward import FakeReward, digest_score
from bonbon.store.database import Database
from bonbon.store.tables import earlier_scores
from tests.support.data.groups import scored_group
from tests.support.data.sampled_groups import make_base
from tests.support.data.stores import as_json, fill, refusal, run
from tests.support.service.forked_command import ForkedCommand

FAKE = RewardKey("fake", "1")
PARTLY = """
def score(prompt, completions):
    for text in completions:
        if text.startswith("answer 1."):
            raise ValueError(f"no score for {text}")
    return [float(len(text)) + text.count("2") for text in completions]
"""
"""The module of a reward that fails for some texts."""


async def logged(log: PairLog, *groups: Group) -> tuple[Group, ...]:
    for group in groups:
        await log.append(group)
    return groups


def scores(group: Group | None) -> list[tuple[float | None, int | None, float | None]]:
    assert group is not None
    return [(candidate.reward, candidate.rank, candidate.win_probability) for candidate in group.candidates]


async def test_a_group_has_the_scores_that_it_would_have_been_logged_with(database: Database, log: PairLog) -> None:
    (before,) = await logged(log, scored_group(1))
    found = await rescore(database, FakeReward())
    assert (found.scored, found.clean, found.failed, found.unreadable) == (1, 1, {}, 0)
    after = await log.group(before.id)
    assert after is not None
    rewards = [digest_score(before.prompt, candidate.text) for candidate in before.candidates]
    assert [candidate.reward for candidate in after.candidates] == rewards
    assert sorted(range(4), key=rewards.__getitem__) == sorted(range(4), key=lambda i: after.candidates[i].rank or 0)
    assert [c.win_probability for c in after.candidates] == [(c.rank or 0) / 5 for c in after.candidates]
    assert (after.reward_name, after.reward_version, after.unclean) == (*FAKE, None)
    blank: dict[str, Any] = {"reward": None, "rank": None, "win_probability": None}
    for field in Group.__dataclass_fields__.keys() - {"reward_name", "reward_version", "candidates"}:
        assert getattr(after, field) == getattr(before, field)
    assert [replace(c, **blank) for c in after.candidates] == [replace(c, **blank) for c in before.candidates]
    async with database.read() as connection:
        assert await read_earlier(connection, after) == [before], "what it was is kept, exactly"


async def test_the_reward_reads_what_the_first_one_read(database: Database, log: PairLog) -> None:
    """It gets tool calls written out, no names, equal texts once, and cut-off answers unchanged."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"order": 7}'}}
    asked: tuple[Message, ...] = (
        {"role": "user", "content": "Where is it?", "name": "ada"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "in Bonn", "tool_call_id": "c1"},
    )
    group = scored_group(1, prompt=Prompt(messages=asked))
    same = replace(group.candidates[1], text=group.candidates[0].text, finish_reason="length")
    await logged(log, replace(group, candidates=(group.candidates[0], same, *group.candidates[2:])))
    read: list[tuple[Prompt, str]] = []

    def note(prompt: Prompt, text: str) -> float:
        read.append((prompt, text))
        return digest_score(prompt, text)

    await rescore(database, FakeReward(note))
    assert [text for _, text in read] == ["answer 1.0", "answer 1.2", "answer 1.3"]
    assert all(prompt == Prompt(messages=asked).plain for prompt, _ in read)


async def test_ties_and_unclean_marks_are_decided_anew(database: Database, log: PairLog) -> None:
    tied = scored_group(1, rewards=(1.0, 1.0, 1.0))
    clean = scored_group(2)
    cut = replace(clean.candidates[0], finish_reason="abort")
    degraded = scored_group(
        3, candidates=(cut, *clean.candidates[1:]), degraded="late", reward_name="fake", reward_version="0"
    )
    assert (tied.unclean, degraded.unclean) == (Unclean.TIED, Unclean.DEGRADED)
    await logged(log, tied, clean, degraded)
    reward = FakeReward(lambda prompt, text: 0.0 if "question 2" in str(prompt) else digest_score(prompt, text))
    found = await rescore(database, reward)
    assert (found.scored, found.clean, found.unclean) == (3, 1, {"tied": 1, "aborted": 1})
    after = [await log.group(group.id) for group in (tied, clean, degraded)]
    assert [group and group.unclean for group in after] == [None, Unclean.TIED, Unclean.ABORTED]
    assert [group and group.degraded for group in after] == [None] * 3
    assert all(group is not None and why_unclean(group) == group.unclean for group in after)


async def test_what_no_scores_make_trainable_is_left_alone(database: Database, log: PairLog) -> None:
    kept = await logged(
        log,
        scored_group(1, rewards=(1.0,)),
        scored_group(2, sampling=Sampling(top_p=0.9)),
        scored_group(3, unclean=Unclean.REWARD, reward_name="their own"),
        scored_group(4, unclean=Unclean.REPEATED),
        scored_group(5, unclean=Unclean.DEGRADED, degraded="late", reward_name="their own"),
        scored_group(6, version="round-1-3", origin=TRAINING),
        scored_group(7, reward_name=FAKE.name, reward_version=FAKE.version),
    )
    reward = FakeReward()
    assert await count_rescorable(database, FAKE) == 0
    assert (await rescore(database, reward)).scored == 0
    assert reward.calls == []
    assert [await log.group(group.id) for group in kept] == list(kept)


async def test_a_failure_loses_its_own_group_only_and_the_next_call_tries_it_again(
    database: Database, log: PairLog
) -> None:
    some = await logged(log, *(scored_group(number) for number in range(AT_ONCE + 3)))

    def fails(prompt: Prompt, text: str) -> float:
        return float("nan") if text.startswith("answer 2.") else digest_score(prompt, text)

    found = await rescore(database, FakeReward(fails))
    assert (found.scored, list(found.failed)) == (AT_ONCE + 2, [some[2].id])
    assert "not finite" in found.failed[some[2].id]
    assert await log.group(some[2].id) == some[2]
    assert (await rescore(database, FakeReward())).scored == 1
    assert await count_rescorable(database, FAKE) == 0


async def test_a_reward_that_fails_for_all_ends_it_and_what_was_scored_is_kept(
    database: Database, log: PairLog
) -> None:
    some = await logged(log, *(scored_group(number) for number in range(2 * AT_ONCE + MAX_FAILURES)))
    oldest = {group.candidates[0].text for group in some[:-AT_ONCE]}

    class Down(FakeReward):
        async def score(self, prompt: Prompt, completions: Any) -> list[float]:
            self.failure = "the server is away" if completions[0] in oldest else None
            return await super().score(prompt, completions)

    reward = Down()
    with pytest.raises(RewardError, match=f"{MAX_FAILURES} groups in a row .*the server is away; the {AT_ONCE} groups"):
        await rescore(database, reward)
    assert len(reward.calls) == AT_ONCE + MAX_FAILURES, "the others are not even tried"
    assert await count_rescorable(database, FAKE) == len(some) - AT_ONCE


async def test_groups_that_are_deleted_or_scored_meanwhile_are_passed_over(database: Database, log: PairLog) -> None:
    gone, taken, left = await logged(log, *(scored_group(number, user=f"u{number}") for number in range(3)))

    class Slow(FakeReward):
        slow = True

        async def score(self, prompt: Prompt, completions: Any) -> list[float]:
            if self.slow:
                self.slow = False
                await purge(database, Conditions(user="u0"))
                other = FakeReward()
                other.version = "2"
                assert (await rescore(database, other, limit=1)).scored == 1
            return await super().score(prompt, completions)

    found = await rescore(database, Slow())
    assert (found.scored, found.failed) == (1, {})
    assert await log.group(gone.id) is None
    versions = [group and group.reward_version for group in (await log.group(taken.id), await log.group(left.id))]
    assert versions == ["1", "2"]


async def test_the_newest_groups_come_first_and_scopes_are_kept(database: Database, log: PairLog) -> None:
    some = await logged(log, *(scored_group(n, version=f"v{n % 2}", tenant="shop" if n > 3 else "") for n in range(6)))
    assert (await rescore(database, FakeReward(), Scope(("v1",), ("shop",)))).scored == 1
    assert (await rescore(database, FakeReward(), Scope(("v0",)), limit=2)).scored == 2
    found = [group and group.reward_name for group in [await log.group(group.id) for group in some]]
    assert found == ["helpful", "helpful", "fake", "helpful", "fake", "fake"]


async def test_prompts_of_token_ids_are_read_by_their_models_tokenizer(
    database: Database, log: PairLog, tmp_path: Path
) -> None:
    await Registry(database, tmp_path / "versions").register_base("tiny", make_base(tmp_path / "base"))
    await logged(log, scored_group(1, prompt=Prompt(token_ids=(2, 5, 9))))
    await logged(log, scored_group(2, prompt=Prompt(token_ids=(2, 5)), version="unknown"))
    prompts = set()

    def note(prompt: Prompt, text: str) -> float:
        prompts.add(prompt)
        return digest_score(prompt, text)

    found = await rescore(database, FakeReward(note), data_dir=tmp_path)
    assert (found.scored, found.unreadable, found.failed) == (1, 1, {})
    assert prompts == {Prompt(text="w2 w5 w9")}


async def test_training_reads_the_new_scores_and_deletion_takes_the_old_ones_along(
    database: Database, log: PairLog
) -> None:
    some = await logged(log, *(scored_group(number, user=f"u{number % 2}") for number in range(4)))
    await rescore(database, FakeReward(), limit=2)
    assert await newest_reward(database, "tiny") == FAKE
    by_reward = {group.group_id: group.reward.name async for group in training_groups(database, version="tiny")}
    assert [by_reward[group.id] for group in some] == ["helpful", "helpful", "fake", "fake"]
    await rescore(database, FakeReward())
    async for group in training_groups(database, version="tiny"):
        assert list(group.rewards) == sorted(group.rewards)
        assert group.reward == FAKE
    assert await purge(database, Conditions(user="u0")) == 2
    async with database.read() as connection:
        left = set((await connection.execute(select(earlier_scores.c.group_id))).scalars())
    assert left == {some[1].id, some[3].id}


async def test_the_newest_reward_is_the_one_that_scored_last(database: Database, log: PairLog) -> None:
    """This also holds when the newest group could not be scored again."""
    await logged(log, *(scored_group(number) for number in range(3)))
    await rescore(database, FakeReward(lambda prompt, text: float("inf" if "answer 2" in text else len(text))))
    assert await newest_reward(database, "tiny") == FAKE
    assert await newest_reward(database, "other") is None
    assert (await select_groups(database, version="tiny")).kind == Kind("tiny", FAKE, 4)
    await logged(log, scored_group(3))
    assert await newest_reward(database, "tiny") == RewardKey("helpful", "1")


async def test_a_request_that_comes_again_is_answered_as_before(database: Database, log: PairLog) -> None:
    (before,) = await logged(log, scored_group(1, idempotency="order-17"))
    other = FakeReward(lambda prompt, text: -len(text))
    for reward in (FakeReward(), other):
        await rescore(database, reward)
        other.version = "2"
    assert (await log.group(before.id) or before).reward_version == "2"
    assert await log.repeated("order-17") == before


@pytest.fixture
def fake_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BONBON_REWARD", '{"kind": "fake"}')


@pytest.mark.usefixtures("fake_reward")
def test_the_command_says_what_it_did(database_url: str) -> None:
    fill(database_url, [scored_group(number, version=f"v{number % 2}") for number in range(5)])
    arguments = ("rescore", "--database", database_url)
    assert run(app, *arguments, "--version", "v1").stdout == "2 groups scored by fake 1: 2 clean\n"
    found = as_json(app, *arguments, "--newest", "1")
    reward = {"name": "fake", "version": "1"}
    assert found == {"reward": reward, "clean": 1, "scored": 1, "unclean": {}, "failed": {}, "unreadable": 0}
    assert run(app, *arguments).exit_code == 0
    again = run(app, *arguments)
    assert (again.exit_code, again.stdout) == (0, "There is nothing to score: fake 1 has scored every group.\n")
    counted = as_json(app, "stats", "--database", database_url)
    assert (counted["rewards"], counted["rescored"]) == ({"fake 1": 5}, 5)
    printed = run(app, "stats", "--database", database_url).stdout
    assert ["scored", "again", "5"] in [line.split() for line in printed.splitlines()]


def test_failures_are_named_at_the_end(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "partly.py").write_text(PARTLY)
    monkeypatch.syspath_prepend(tmp_path)
    fill(database_url, [scored_group(number) for number in range(3)])
    result = run(app, "rescore", "--reward", "python:partly:score", "--database", database_url)
    assert result.exit_code == 1
    assert "2 groups scored by python " in result.stdout
    assert "1 groups could not be scored and keep their scores. Run this command again to retry them:" in result.stdout
    assert "no score for answer 1.0" in result.stdout


def test_mistakes_are_named_with_their_remedy(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(database_url, [scored_group()])
    arguments = ("rescore", "--database", database_url)
    assert "no reward is configured that could score the groups: name one with --reward" in refusal(app, *arguments)
    monkeypatch.setenv("BONBON_REWARD", '{"kind": "fake"}')
    told = refusal(app, *arguments, "--version", "v9")
    assert told == "the pair log has no group of version 'v9'; it has groups of: tiny"
    told = refusal(app, *arguments, "--reward", "http://127.0.0.1:9/score")
    assert "reward http cannot score a short answer" in told


async def test_a_command_that_is_killed_goes_on_where_it_was(
    database_url: str, database: Database, log: PairLog, tmp_path: Path
) -> None:
    some = await logged(log, *(scored_group(number) for number in range(4 * AT_ONCE)))
    reward = '{"kind": "fake", "delay": 0.5}'
    command = ForkedCommand(tmp_path, "pairs", "rescore", "--database", database_url, BONBON_REWARD=reward)

    async def done() -> int:
        async with database.read() as connection:
            return int((await connection.execute(select(func.count()).select_from(earlier_scores))).scalar_one())

    while not await done():
        assert command.wait(0.02) is None, command.written
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    kept = await done()
    assert 0 < kept < len(some)
    assert kept % AT_ONCE == 0
    resumed = FakeReward()
    assert (await rescore(database, resumed)).scored == len(some) - kept == len(resumed.calls)
    for group in some:
        after = await log.group(group.id)
        assert after is not None
        rewards = [digest_score(group.prompt, candidate.text) for candidate in group.candidates]
        assert [c.reward for c in after.candidates] == rewards
        async with database.read() as connection:
            assert await read_earlier(connection, after) == [group], "each was scored again once"
