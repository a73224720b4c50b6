"""Tests of the pair log's guarantees for appends, on SQLite and PostgreSQL."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select

from bonbon.engines.engine import Sampling
from bonbon.errors import StoreError, StoreUnavailable, UserError
from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.group_records import Candidate, Comparison, Feedback, Group, Outcome, Unclean
from bonbon.pairs.group_store import Kept
from bonbon.pairs.pair_log import PairLog
from bonbon.prompt import Prompt
from bonbon.store.database import Database, open_database
from bonbon.store.storable_text import clean_text
from bonbon.store.tables import candidates, comparisons, feedback, groups
from tests.support.data.groups import scored_group
from tests.support.paths import ROOT


async def rows_of(database: Database, table: Any) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


async def test_a_group_comes_back_as_it_was(log: PairLog) -> None:
    group = scored_group(1, n=8, tenant="acme", origin="audit")
    await log.append(group)
    assert await log.group(group.id) == group
    assert await log.group("another") is None


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt.chat({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}),
        Prompt(text="Once upon"),
        Prompt(token_ids=(5, 6, 7)),
    ],
    ids=["messages", "text", "token ids"],
)
async def test_every_form_of_prompt_comes_back(log: PairLog, prompt: Prompt) -> None:
    group = scored_group(prompt=prompt)
    await log.append(group)
    stored = await log.group(group.id)
    assert stored is not None
    assert stored.prompt == prompt


async def test_a_degraded_group_keeps_why(log: PairLog) -> None:
    raw = scored_group()
    unranked = tuple(replace(c, reward=None, rank=None, win_probability=None) for c in raw.candidates)
    group = replace(raw, candidates=unranked, degraded="reward_timeout", unclean=Unclean.DEGRADED)
    await log.append(group)
    assert await log.group(group.id) == group


async def test_the_same_id_again_changes_nothing(log: PairLog) -> None:
    group = scored_group(1)
    await log.append(group)
    await log.append(replace(scored_group(2, n=6), id=group.id))
    assert await log.group(group.id) == group


async def test_waiting_groups_share_a_commit(database: Database, log: PairLog) -> None:
    commits = 0

    @event.listens_for(database.engine.sync_engine, "commit")
    def count(_: Any) -> None:
        nonlocal commits
        commits += 1

    new = [scored_group(number) for number in range(200)]
    await asyncio.gather(*(log.append(group) for group in new))
    assert commits <= 5  # one for the first, one for most of the others
    assert await rows_of(database, groups) == 200
    assert await rows_of(database, candidates) == 800


async def test_one_that_cannot_be_stored_fails_alone(database: Database, log: PairLog) -> None:
    """The groups that wait with it are stored."""
    good = [scored_group(number) for number in range(20)]
    bad = scored_group(99, prompt_token_ids=(2**31,))
    entries = [*good[:7], bad, *good[7:]]
    outcomes = await asyncio.gather(*(log.append(group) for group in entries), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Kept] * 7 + [StoreError] + [Kept] * 13
    assert await rows_of(database, groups) == 20
    assert await log.group(bad.id) is None


async def test_a_database_that_is_gone_is_told_to_everyone_who_waits(log: PairLog, database: Database) -> None:
    async with database.write() as connection:
        for table in (comparisons, feedback, candidates):
            await connection.run_sync(table.drop)
    outcomes = await asyncio.gather(*(log.append(scored_group(i)) for i in range(3)), return_exceptions=True)
    assert all(isinstance(outcome, StoreError) for outcome in outcomes)
    assert await rows_of(database, groups) == 0
    assert log.waiting == 0


async def test_stop_stores_what_waits_and_refuses_the_rest(database: Database) -> None:
    log = PairLog(database)
    with pytest.raises(StoreError, match="not running"):
        await log.append(scored_group())
    await log.start()
    appends = [asyncio.create_task(log.append(scored_group(number))) for number in range(50)]
    await asyncio.sleep(0)
    await log.stop()
    await asyncio.gather(*appends)
    assert await rows_of(database, groups) == 50
    with pytest.raises(StoreError, match="not running"):
        await log.append(scored_group())


async def test_a_cancelled_caller_loses_nothing(database: Database, log: PairLog) -> None:
    appends = [asyncio.create_task(log.append(scored_group(number))) for number in range(20)]
    await asyncio.sleep(0)
    for append in appends[::2]:
        append.cancel()
    await asyncio.gather(*appends, return_exceptions=True)
    await log.append(scored_group())
    assert await rows_of(database, groups) == 21


KILLED = """
import asyncio, sys
sys.path.insert(0, {root!r})
from tests.support.data.groups import scored_group
from bonbon.store.database import open_database
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.group_store import Kept

async def main():
    async with open_database({url!r}) as database:
        log = PairLog(database)
        await log.start()

        async def append_forever(worker):
            number = 0
            while True:
                group = scored_group(number)
                await log.append(group)
                print(group.id, flush=True)
                number += 1

        await asyncio.gather(*(append_forever(worker) for worker in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [5, 60, 300])
async def test_what_was_acknowledged_survives_kill_9(database: Database, database_url: str, after: int) -> None:
    """A separate process appends until it is killed; every id that it printed is in the log with its complete group."""
    program = KILLED.format(root=str(ROOT), url=database_url)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(after)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    log = PairLog(database)
    for group_id in acknowledged:
        group = await log.group(group_id)
        assert group is not None
        assert group.n == 4


text = st.text(st.characters(codec=None, exclude_categories=[]), max_size=30)
number = st.floats(allow_nan=False, allow_infinity=False)
token_ids = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20).map(tuple)


@given(
    content=text,
    answer=text,
    user=text,
    metadata=st.dictionaries(text, text, max_size=3),
    token_ids=token_ids,
    logprob=number,
    reward=st.none() | number,
    stop=st.lists(text, max_size=2).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    response_format=st.none() | st.just('{"type":"json_object"}'),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_a_client_or_a_model_says_can_be_stored(
    any_log: "Runner",
    content: str,
    answer: str,
    user: str,
    metadata: dict[str, str],
    token_ids: tuple[int, ...],
    logprob: float,
    reward: float | None,
    stop: tuple[str, ...],
    seed: int | None,
    response_format: str | None,
) -> None:
    """NUL and lone surrogates become U+FFFD in text; everything else, especially token ids, is exact."""
    candidate = Candidate(0, answer, token_ids, logprob, "stop", reward=reward)
    group = scored_group(
        prompt=Prompt.user(content),
        candidates=(candidate,),
        user=user,
        metadata=metadata,
        sampling=Sampling(max_tokens=1, stop=stop, seed=seed, response_format=response_format),
        unclean=Unclean.SINGLE,
    )
    expected = replace(
        group,
        prompt=Prompt.user(clean_text(content)),
        candidates=(replace(candidate, text=clean_text(answer)),),
        user=clean_text(user),
        metadata={clean_text(key): clean_text(value) for key, value in metadata.items()},
        sampling=replace(group.sampling, stop=tuple(map(clean_text, stop))),
    )
    assert any_log.store(group) == expected


class Runner:
    """A pair log for synchronous tests."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.database = Database(url)
        self.runner.run(self.database.start())
        self.log = PairLog(self.database)
        self.runner.run(self.log.start())

    def store(self, group: Group) -> Group | None:
        async def there_and_back() -> Group | None:
            await self.log.append(group)
            return await self.log.group(group.id)

        return self.runner.run(there_and_back())

    def close(self) -> None:
        self.runner.run(self.log.stop())
        self.runner.run(self.database.stop())
        self.runner.close()


@pytest.fixture
def any_log(database_url: str) -> Any:
    runner = Runner(database_url)
    yield runner
    runner.close()


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [("a\0b", "a\ufffdb"), ("\ud83d", "\ufffd"), ("\ud83d\ude00", "😀"), ("naïve 日本", "naïve 日本")],
)
def test_clean_text(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean


def comparison(group: Group, reward: float, opponent_reward: float) -> Comparison:
    return Comparison(group.id, datetime.now(UTC), "v1", "tiny", "helpful", "1", reward, opponent_reward)


async def test_comparisons_are_stored_with_their_group(database: Database, log: PairLog) -> None:
    group = scored_group()
    await log.append(group)
    for ours, theirs in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
        await log.append_comparison(comparison(group, ours, theirs))
    assert await rows_of(database, comparisons) == 3
    with pytest.raises(StoreError):
        await log.append_comparison(replace(comparison(group, 1, 0), group_id="gone"))


def test_the_outcome_is_read_from_the_champions_side() -> None:
    group = scored_group()
    outcomes = [comparison(group, *rewards).outcome for rewards in ((2, 1), (1, 1), (1, 2))]
    assert outcomes == [Outcome.WIN, Outcome.TIE, Outcome.LOSS]


async def test_feedback_is_stored_with_its_group(database: Database, log: PairLog) -> None:
    group = scored_group()
    await log.append(group)
    await log.append_feedback(
        Feedback(group.id, datetime.now(UTC), score=0.5, chosen=3, comment="good\0", user="user 1")
    )
    async with database.read() as connection:
        row = (await connection.execute(select(feedback))).mappings().one()
    assert (row["score"], row["chosen"], row["comment"], row["end_user"]) == (0.5, 3, "good\ufffd", "user 1")


@pytest.mark.parametrize("chosen", [-1, 4])
async def test_feedback_on_what_is_not_there_is_refused(log: PairLog, chosen: int) -> None:
    group = scored_group()
    await log.append(group)
    with pytest.raises(UserError, match="candidates 0 to 3"):
        await log.append_feedback(Feedback(group.id, datetime.now(UTC), chosen=chosen))
    with pytest.raises(UserError, match="no group 'gone'"):
        await log.append_feedback(Feedback("gone", datetime.now(UTC), score=1.0))


async def test_what_is_deleted_does_not_answer_a_retry_while_the_database_is_away(tmp_path: Path) -> None:
    hers, his = (scored_group(user=user, idempotency=key * 64) for user, key in (("ada", "a"), ("bob", "b")))
    async with open_database(f"sqlite+aiosqlite:///{tmp_path / 'bonbon.db'}") as database:
        log = PairLog(database)
        await log.start()
        await log.append(hers)
        await log.append(his)
        await log.forget(Conditions(user="ada"))
        log.health.failed(StoreUnavailable("the database is away"), spool=True)
        assert [await log.repeated(group.idempotency or "") for group in (hers, his)] == [None, his]
        await log.stop()
