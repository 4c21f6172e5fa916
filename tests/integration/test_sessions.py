"""What every session with the database is given, and what the user's own connection string may change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from eventstore.connection import closing_after, connect, pool
from eventstore.queries import one_value
from tests.support.parts import SCHEMA, connected

if TYPE_CHECKING:
    from eventstore.connection import Connection

_GIVEN = {
    "search_path": SCHEMA,
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": "10s",
    "lock_timeout": "5s",
    "statement_timeout": "1min",
    "default_transaction_read_only": "off",
}


async def _shown(connection: Connection, *names: str) -> dict[str, str]:
    query = "SELECT current_setting(%s)"
    return {name: await one_value(connection, query, (name,)) for name in names}


async def test_nobody_waits_for_ever_and_nothing_is_acknowledged_that_is_not_durable(
    connection: Connection,
) -> None:
    assert await _shown(connection, *_GIVEN) == _GIVEN
    if connection.info.server_version >= 170_000:
        assert await _shown(connection, "transaction_timeout") == {"transaction_timeout": "2min"}


async def test_what_a_caller_asks_for_goes_before_it(database: str) -> None:
    wishes = {"lock_timeout": 60_000, "statement_timeout": 0, "transaction_timeout": 0}
    opened = await connect(database, SCHEMA, name="squad test", **wishes)
    async with opened:
        assert await _shown(opened, "lock_timeout", "statement_timeout") == {
            "lock_timeout": "1min",
            "statement_timeout": "0",
        }
        if opened.info.server_version >= 170_000:
            assert await _shown(opened, "transaction_timeout") == {"transaction_timeout": "0"}


async def test_the_options_of_the_connection_string_are_kept_beside_ours(database: str) -> None:
    dsn = make_conninfo(database, options="-c work_mem=8MB -c search_path=elsewhere")
    async with connected(dsn) as connection, pool(dsn, SCHEMA, name="squad test", size=1) as opened:
        assert await _shown(connection, "work_mem", "search_path") == {
            "work_mem": "8MB",
            "search_path": SCHEMA,
        }
        async with opened.connection() as reading:
            assert await _shown(reading, "work_mem", "search_path") == {
                "work_mem": "8MB",
                "search_path": SCHEMA,
            }


async def test_a_peer_that_vanished_is_noticed_unless_the_connection_string_says_when(
    database: str,
) -> None:
    noticing = {"keepalives_idle": "5", "keepalives_count": "3", "tcp_user_timeout": "15000"}
    patient = noticing | {"keepalives_idle": "77"}
    dsn = make_conninfo(database, keepalives_idle=77)
    async with connected(database) as ours, connected(dsn) as theirs:
        assert noticing.items() <= ours.info.get_parameters().items()
        assert patient.items() <= theirs.info.get_parameters().items()
    async with pool(dsn, SCHEMA, name="squad test", size=1) as opened, opened.connection() as reading:
        assert patient.items() <= reading.info.get_parameters().items()


async def test_readers_change_nothing(database: str) -> None:
    async with pool(database, SCHEMA, name="squad test", size=1) as opened, opened.connection() as reading:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await reading.execute("DELETE FROM projections")


async def test_a_wait_that_takes_too_long_ends_with_its_connection(database: str) -> None:
    async with connected(database) as connection:
        with closing_after(0.01, connection):
            pass
        await connection.execute("SELECT pg_sleep(0.05)")
        with pytest.raises(psycopg.OperationalError), closing_after(0.01, connection):
            await connection.execute("SELECT pg_sleep(60)")
        assert connection.broken
