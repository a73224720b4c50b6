"""What is PostgreSQL's own: connections that can be given up, and limits that the server keeps itself."""

import asyncio
from typing import Any

from psycopg import AsyncConnection, waiting
from sqlalchemy import Connection, Engine, event, text

PATIENCE = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "tcp_user_timeout": 15_000}
"""How long, in seconds and at the end in milliseconds, the client waits for a server that says nothing."""

INTERVAL = 0.1
"""Seconds between looks at a socket; psycopg's own."""


class PromptConnection(AsyncConnection[Any]):
    """A connection that closes when whoever waits for it is cancelled.

    psycopg would ask the server first to cancel the statement, and wait for an answer: a server that has stopped gives
    none.
    """

    async def wait(self, gen: Any, interval: float = INTERVAL, *arguments: Any, **options: Any) -> Any:
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval, *arguments, **options)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise


def limit_statements(engine: Engine, seconds: float) -> None:
    """Have the server end every statement, and every wait for a lock, of the engine's connections after `seconds`.

    A server that is alive frees so what a client that gave up has left behind.
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
        connection.commit()  # a rollback would take the limits back


def limit_transaction(connection: Connection, seconds: float) -> None:
    """Give the statements of this transaction another limit; waits for locks keep theirs."""
    value = text("SELECT set_config('statement_timeout', :milliseconds, true)")
    connection.execute(value, {"milliseconds": str(round(seconds * 1000))})
