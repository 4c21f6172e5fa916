"""The settings of every session with the database, and which of them a connection string can change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from eventstore.connection import closing_after, connect, pool
from eventstore.queries import one_value
from tests.support.components import SCHEMA, connected

if TYPE_CHECKING:
    from eventstore.connection import Connection

_SETTINGS = {
    "search_path": SCHEMA,
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "5s",
    "statement_timeout": "1min",
    "default_transaction_read_only": "off",
}


async def _current(connection: Connection, *names: str) -> dict[str, str]:
    query = "SELECT current_setting(%s)"
    return {name: await one_value(connection, query, (name,)) for name in names}


async def test_sessions_have_timeouts_and_durable_commits(
    connection: Connection,
) -> None:
    assert await _current(connection, *_SETTINGS) == _SETTINGS
    if connection.info.server_version >= 170_000:
        assert await _current(connection, "transaction_timeout") == {"transaction_timeout": "2min"}


async def test_timeouts_given_by_the_caller_take_precedence(database: str) -> None:
    timeouts = {"lock_timeout": 60_000, "statement_timeout": 0, "transaction_timeout": 0}
    opened = await connect(database, SCHEMA, name="squad test", **timeouts)
    async with opened:
        assert await _current(opened, "lock_timeout", "statement_timeout") == {
            "lock_timeout": "1min",
            "statement_timeout": "0",
        }
        if opened.info.server_version >= 170_000:
            assert await _current(opened, "transaction_timeout") == {"transaction_timeout": "0"}


async def test_options_of_the_connection_string_are_kept_except_the_search_path(database: str) -> None:
    dsn = make_conninfo(database, options="-c work_mem=8MB -c search_path=elsewhere")
    async with connected(dsn) as connection, pool(dsn, SCHEMA, name="squad test", size=1) as opened:
        assert await _current(connection, "work_mem", "search_path") == {
            "work_mem": "8MB",
            "search_path": SCHEMA,
        }
        async with opened.connection() as reading:
            assert await _current(reading, "work_mem", "search_path") == {
                "work_mem": "8MB",
                "search_path": SCHEMA,
            }


async def test_keepalives_are_set_unless_the_connection_string_sets_them(
    database: str,
) -> None:
    defaults = {"keepalives_idle": "5", "keepalives_count": "3", "tcp_user_timeout": "15000"}
    overridden = defaults | {"keepalives_idle": "77"}
    dsn = make_conninfo(database, keepalives_idle=77)
    async with connected(database) as ours, connected(dsn) as theirs:
        assert defaults.items() <= ours.info.get_parameters().items()
        assert overridden.items() <= theirs.info.get_parameters().items()
    async with pool(dsn, SCHEMA, name="squad test", size=1) as opened, opened.connection() as reading:
        assert overridden.items() <= reading.info.get_parameters().items()


async def test_pooled_connections_are_read_only(database: str) -> None:
    async with pool(database, SCHEMA, name="squad test", size=1) as opened, opened.connection() as reading:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await reading.execute("DELETE FROM projections")


async def test_wait_that_takes_too_long_closes_its_connection(database: str) -> None:
    async with connected(database) as connection:
        with closing_after(0.01, connection):
            pass
        await connection.execute("SELECT pg_sleep(0.05)")
        with pytest.raises(psycopg.OperationalError), closing_after(0.01, connection):
            await connection.execute("SELECT pg_sleep(60)")
        assert connection.broken
