"""Tests of what a deletion reads on PostgreSQL, where deleted rows stay in tables and indexes until a vacuum."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from bonbon.pairs.deletion.conditions import Conditions
from bonbon.pairs.deletion.purge import purge
from bonbon.pairs.group_store import store_groups
from bonbon.store.database import open_database
from tests.support.data.groups import scored_group
from tests.support.until import until

GROUPS, CHUNK = 400, 20


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_no_transaction_reads_again_what_others_have_deleted(database_url: str, tmp_path: Path) -> None:
    """A backup reads meanwhile, so that PostgreSQL cannot mark the deleted entries of the index either."""
    url = make_url(database_url)
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    # In a small table the planner would read everything each time.
    indexed = url.update_query_dict({"options": "-c enable_seqscan=off -c enable_bitmapscan=off"})
    old = datetime.now(UTC) - timedelta(days=100)
    async with open_database(indexed.render_as_string(hide_password=False)) as database:
        await store_groups(database, [scored_group(i, n=2, time=old + timedelta(hours=i)) for i in range(GROUPS)])
        with psycopg.connect(plain) as backup:
            backup.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            backup.execute("SELECT count(*) FROM groups")
            assert await purge(database, Conditions(older_than=datetime.now(UTC)), chunk=CHUNK) == GROUPS
    with psycopg.connect(plain, autocommit=True) as connection:

        def read() -> tuple[int, int]:
            query = "SELECT idx_scan, idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'ix_groups_time'"
            row = connection.execute(query).fetchone()
            assert row is not None
            return row[0], row[1]

        transactions = GROUPS // CHUNK + 1
        await until(lambda: read()[0] >= transactions)
        # Each one reads the last entry of the one before once more.
        assert read()[1] <= GROUPS + 2 * transactions
