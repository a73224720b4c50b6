"""PostgreSQL specifics: connections that can be abandoned, and limits that the server enforces."""

import asyncio
from typing import Any

from psycopg import AsyncConnection, waiting
from sqlalchemy import Connection, Engine, event, text

CONNECTION_TIMEOUTS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "tcp_user_timeout": 15_000,
}
"""How long the client waits for a silent server, in seconds; the last value is in milliseconds."""

INTERVAL = 0.1
"""Seconds between polls of a socket, the same as psycopg's own."""


class PromptConnection(AsyncConnection[Any]):
    """A connection that closes when its caller is cancelled.

    psycopg would first ask the server to cancel the statement and wait for an answer, which a hanging server never
    gives.
    """

    async def wait(self, gen: Any, interval: float = INTERVAL, *arguments: Any, **options: Any) -> Any:
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval, *arguments, **options)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise


def limit_statements(engine: Engine, seconds: float) -> None:
    """Makes the server end every statement and every wait for a lock on the engine's connections after `seconds`.

    A live server thus frees the resources that a client left behind when it gave up.
    """

    @event.listens_for(engine, "connect")
    def limit(connection: Any, _record: Any) -> None:
        milliseconds = str(round(seconds * 1000))
        cursor = connection.cursor()
        cursor.execute(
            "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false)",
            (milliseconds, milliseconds),
        )
        cursor.close()
        connection.commit()  # a rollback would undo the limits


def limit_transaction(connection: Connection, seconds: float) -> None:
    """Sets another limit for the statements of this transaction; waits for locks keep theirs."""
    value = text("SELECT set_config('statement_timeout', :milliseconds, true)")
    connection.execute(value, {"milliseconds": str(round(seconds * 1000))})
