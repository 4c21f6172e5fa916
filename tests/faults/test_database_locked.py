"""The service waits and recovers when other sessions hold locks or a long transaction."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.components import connected
from tests.support.load import Load
from tests.support.process import squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection
    from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.faults

HELD_SECONDS = 6.0
"""Longer than the lock timeout of five seconds."""

NOTICED_WITHIN_SECONDS = 5.0
"""Waiting for the log's lock is reported after three seconds; a probe of the tables takes two."""

RECOVERY_SECONDS = 5.0
"""A waiter gets the lock at once; one that has just timed out retries within two seconds."""


@pytest.mark.parametrize(
    ("what", "statement"),
    [
        ("the log's lock", "SELECT lock_log()"),
        ("ACCESS EXCLUSIVE on the log", "LOCK TABLE events IN ACCESS EXCLUSIVE MODE"),
        (
            "ACCESS EXCLUSIVE on read tables",
            "LOCK TABLE squad_messages, projections IN ACCESS EXCLUSIVE MODE",
        ),
    ],
)
async def test_service_recovers_from_an_idle_transaction_that_holds_a_lock(
    database: str, what: str, statement: str
) -> None:
    async with squad_up(dsn=database) as service, connected(database) as idle:
        await idle.execute("SET idle_in_transaction_session_timeout = 0")
        trial = Trial(
            f"an idle transaction holds {what} for {HELD_SECONDS:g} s",
            RECOVERY_SECONDS,
            Load([service]),
        )
        async with trial.running():
            with trial.fault_injection():
                await idle.execute("BEGIN")
                await idle.execute(statement.encode())
                await eventually(service.is_not_ready, within_seconds=NOTICED_WITHIN_SECONDS)
                # The duration is what is tested.
                await asyncio.sleep(HELD_SECONDS)
                await idle.execute("ROLLBACK")
            await trial.wait_until_recovered(service)
        await trial.verify(database)


async def test_long_transaction_in_another_database_blocks_neither_writes_nor_vacuum(
    database: str, postgres: PostgresServer
) -> None:
    """The transaction has a snapshot and a transaction id, listens, and has an uncommitted NOTIFY."""
    async with (
        squad_up(dsn=database) as service,
        connected(postgres.dsn, "public") as stranger,
        connected(database) as connection,
    ):
        trial = Trial("a long transaction in another database", RECOVERY_SECONDS, Load([service]))
        async with trial.running():
            with trial.fault_injection():
                await stranger.execute("SET idle_in_transaction_session_timeout = 0")
                await stranger.execute("LISTEN gossip")
                await stranger.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                await stranger.execute("CREATE TEMPORARY TABLE scratch AS SELECT 1 AS n")
                await stranger.execute("NOTIFY gossip, 'psst'")
            await trial.wait_until_recovered(service)
        await trial.verify(database)
        # Vacuum can still remove the dead rows that the projector leaves all the time.
        assert await dead_rows_kept_by_vacuum(connection) == 0
        await stranger.execute("ROLLBACK")


async def dead_rows_kept_by_vacuum(connection: Connection) -> int:
    """The number of dead rows of `projections` that a vacuum cannot remove yet."""
    notices: list[str] = []
    connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    await connection.execute("VACUUM (VERBOSE) projections")
    found = re.findall(r"(\d+) are dead but not yet removable", "\n".join(notices))
    assert found
    return sum(map(int, found))
