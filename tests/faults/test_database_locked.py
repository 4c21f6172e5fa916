"""Somebody else keeps the database busy, with locks or a long transaction: it says so, and waits."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.load import Load
from tests.support.parts import connected
from tests.support.process import squad_up
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection
    from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.faults

HELD_SECONDS = 6.0
"""Longer than anybody waits for a lock, which is five seconds."""

NOTICED_WITHIN_SECONDS = 5.0
"""The log's lock is missed after three seconds; a probe of the tables takes two."""

AFTER_A_LOCK_SECONDS = 5.0
"""Who waits for the lock gets it at once; who has just given up tries again after two seconds at most."""


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
async def test_an_idle_transaction_that_holds_what_is_needed(
    database: str, what: str, statement: str
) -> None:
    async with squad_up(dsn=database) as service, connected(database) as idle:
        await idle.execute("SET idle_in_transaction_session_timeout = 0")
        trial = Trial(
            f"an idle transaction holds {what} for {HELD_SECONDS:g} s",
            AFTER_A_LOCK_SECONDS,
            Load([service]),
        )
        async with trial.running():
            with trial.cause():
                await idle.execute("BEGIN")
                await idle.execute(statement.encode())
                await eventually(service.is_not_ready, within_seconds=NOTICED_WITHIN_SECONDS)
                # So long is what is tested.
                await asyncio.sleep(HELD_SECONDS)
                await idle.execute("ROLLBACK")
            await trial.well(service)
        await trial.judge(database)


async def test_a_long_transaction_in_another_database(database: str, postgres: PostgresServer) -> None:
    """It has a snapshot and a number of its own, listens, and has said something that is not committed."""
    async with (
        squad_up(dsn=database) as service,
        connected(postgres.dsn, "public") as stranger,
        connected(database) as elsewhere,
    ):
        trial = Trial("a long transaction in another database", AFTER_A_LOCK_SECONDS, Load([service]))
        async with trial.running():
            with trial.cause():
                await stranger.execute("SET idle_in_transaction_session_timeout = 0")
                await stranger.execute("LISTEN gossip")
                await stranger.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                await stranger.execute("CREATE TEMPORARY TABLE scratch AS SELECT 1 AS n")
                await stranger.execute("NOTIFY gossip, 'psst'")
            await trial.well(service)
        await trial.judge(database)
        # What the projector rewrites all the time can be cleared away in spite of it.
        assert await rows_that_vacuum_must_leave(elsewhere) == 0
        await stranger.execute("ROLLBACK")


async def rows_that_vacuum_must_leave(connection: Connection) -> int:
    """How many dead rows of `projections` somebody may still want to see, after a vacuum."""
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    await connection.execute("VACUUM (VERBOSE) projections")
    found = re.findall(r"(\d+) are dead but not yet removable", "\n".join(said))
    assert found
    return sum(map(int, found))
