"""Tests of leases on SQLite and PostgreSQL: one holder at a time, and late holders are refused."""

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest

from bonbon.errors import Conflict
from bonbon.registry.leases import Lease, acquire, release, renew
from bonbon.store.database import Database, open_database


async def test_one_holder_at_a_time(database: Database) -> None:
    lease = await acquire(database, "train", "ada", 60)
    assert lease == Lease("train", "ada", 1, 60)
    for holder in ("bob", "ada"):
        with pytest.raises(Conflict, match="lease 'train' is held by ada until 20"):
            await acquire(database, "train", holder, 60)
    assert (await acquire(database, "report", "bob", 60)).token == 1


async def test_a_lease_that_is_given_back_is_free_at_once(database: Database) -> None:
    lease = await acquire(database, "train", "ada", 60)
    await release(database, lease)
    assert (await acquire(database, "train", "bob", 60)).token == 2
    with pytest.raises(Conflict, match="lease 'train' with token 1 was taken over"):
        await release(database, lease)


async def test_a_lease_given_back_cannot_be_renewed(database: Database) -> None:
    lease = await acquire(database, "train", "ada", 60)
    await release(database, lease)
    with pytest.raises(Conflict, match="taken over"):
        await renew(database, lease)


async def test_an_expired_lease_is_taken_over_and_its_token_is_worth_nothing(database: Database) -> None:
    late = await acquire(database, "train", "ada", 0)
    new = await acquire(database, "train", "bob", 60)
    assert new.token > late.token
    for change in (renew, release):
        with pytest.raises(Conflict, match=f"token {late.token} was taken over"):
            await change(database, late)
    assert await renew(database, new) == new  # what the late one tried changed nothing


async def test_the_same_holder_that_comes_again_has_another_token(database: Database) -> None:
    """The earlier process must not be able to renew the lease of a restarted process with the same name."""
    late = await acquire(database, "train", "ada", 0)
    new = await acquire(database, "train", "ada", 60)
    with pytest.raises(Conflict):
        await renew(database, late)
    await release(database, new)


async def test_an_expired_lease_that_nobody_took_is_held_again_by_renewing(database: Database) -> None:
    lease = await acquire(database, "train", "ada", 0)
    await renew(database, replace(lease, seconds=60))
    with pytest.raises(Conflict, match="held by ada"):
        await acquire(database, "train", "bob", 60)


async def test_a_token_that_was_never_given_is_refused(database: Database) -> None:
    lease = await acquire(database, "train", "ada", 60)
    for forged in (replace(lease, token=2), replace(lease, holder="bob"), replace(lease, name="report")):
        with pytest.raises(Conflict, match="taken over"):
            await renew(database, forged)


@pytest.mark.parametrize("expired", [False, True], ids=["new", "expired"])
async def test_of_many_who_come_at_once_one_gets_it(database: Database, database_url: str, expired: bool) -> None:
    if expired:
        await acquire(database, "train", "nobody", 0)

    async def come(holder: str) -> Lease:
        async with open_database(database_url) as own:
            return await acquire(own, "train", holder, 60)

    outcomes = await asyncio.gather(*(come(f"holder {number}") for number in range(8)), return_exceptions=True)
    held = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert len(held) == 1
    assert held[0].token == 1 + expired
    others = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
    assert len(others) == 7
    assert all(f"held by {held[0].holder}" in str(conflict) for conflict in others)


TAKE_AND_GIVE = """
import asyncio
from bonbon.store.database import open_database
from bonbon.errors import Conflict
from bonbon.registry.leases import acquire, release

async def main():
    async with open_database({url!r}) as database:
        taken = 0
        while taken < 10:
            try:
                lease = await acquire(database, "train", "holder", 60)
            except Conflict:
                await asyncio.sleep(0.002)
                continue
            print(lease.token, flush=True)
            taken += 1
            await release(database, lease)

asyncio.run(main())
"""


async def test_no_two_processes_ever_get_the_same_token(database: Database, database_url: str) -> None:
    program = TAKE_AND_GIVE.format(url=database_url)
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    tokens = [int(token) for process in processes for token in process.communicate(timeout=120)[0].split()]
    assert sorted(tokens) == list(range(1, 31))
    assert (await acquire(database, "train", "last", 60)).token == 31
