"""`squad replay`, killed or standing still at any moment: the live tables are as they were, or replaced."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import psutil
import pytest

from eventstore.listener import Hints
from projections.comparison import compare
from projections.projector import Projector
from tests.support.command import finished, squad_command
from tests.support.log import LogWriter, joined, said
from tests.support.parts import SCHEMA, backends, connected, running
from tests.support.signals import stopped
from tests.support.tables import generation, one, project
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from eventstore.connection import Connection

pytestmark = pytest.mark.faults

MESSAGES = 10_000
KILLS = 5

PAST_A_STOPPED_ONE_WITHIN_SECONDS = 20.0
"""The database ends a transaction that nobody goes on with after 10 seconds."""


async def test_killed_at_any_moment_it_leaves_the_tables_as_they_were_or_replaced(
    database: str, tmp_path: Path
) -> None:
    random = Random(11)
    arguments = ("replay", "--dsn", database)
    async with connected(database) as connection:
        await _many_messages(connection)
        await project(database)
        await connection.execute("UPDATE squad_messages SET task_id = 'tampered'")
        untouched = 0
        for _ in range(KILLS):
            before = await generation(connection)
            async with squad_command(*arguments, cwd=tmp_path) as process:
                await eventually(partial(backends, connection, "squad replay"), within_seconds=30)
                # In the middle of whatever it is at by then.
                await asyncio.wait([asyncio.create_task(process.wait())], timeout=random.uniform(0, 0.3))
                if process.returncode is None:
                    process.kill()
            await eventually(partial(_is_gone, connection))
            tampered = await one(
                connection, "SELECT count(*) FROM squad_messages WHERE task_id = 'tampered'"
            )
            assert (await generation(connection), tampered) in ((before, MESSAGES), (before + 1, 0))
            untouched += tampered == MESSAGES
            await connection.execute("UPDATE squad_messages SET task_id = 'tampered'")
        assert untouched, "it was never killed before its end"
        printed = await finished(*arguments, cwd=tmp_path)
    assert f"replayed {MESSAGES + 1:,} events" in printed
    assert await compare(database, SCHEMA) == []


async def test_killed_in_the_middle_of_the_swap_it_lets_go_and_the_next_one_works(
    database: str, tmp_path: Path
) -> None:
    arguments = ("replay", "--dsn", database)
    async with connected(database) as connection, connected(database) as holder:
        scribe = LogWriter(connection)
        projector = Projector(database, SCHEMA, Hints())
        async with running(projector.run()):
            await scribe.append(joined("alice"), said("one"))
            await eventually(partial(projected_to_head, database))
            await connection.execute("UPDATE squad_messages SET message = 'tampered'")
            before = await generation(connection)
            await _hold_the_messages(holder)
            async with squad_command(*arguments, cwd=tmp_path) as process:
                await eventually(partial(_waits_in_the_swap, connection), within_seconds=30)
                process.kill()
                await process.wait()
            await eventually(partial(_is_gone, connection))
            await holder.execute("COMMIT")
            assert await generation(connection) == before
            assert await one(connection, "SELECT message FROM squad_messages") == "tampered"
            await scribe.append(said("two"))
            await eventually(partial(projected_to_head, database))
            await finished(*arguments, cwd=tmp_path)
            await scribe.append(said("three"))
            await eventually(partial(projected_to_head, database))
    assert await compare(database, SCHEMA) == []


async def test_standing_still_in_the_middle_of_the_swap_it_holds_nobody_up_for_long(
    database: str, tmp_path: Path
) -> None:
    async with connected(database) as connection, connected(database) as holder:
        scribe = LogWriter(connection)
        async with running(Projector(database, SCHEMA, Hints()).run()):
            await scribe.append(joined("alice"), said("one"))
            await eventually(partial(projected_to_head, database))
            await connection.execute("UPDATE squad_messages SET message = 'tampered'")
            await _hold_the_messages(holder)
            async with squad_command("replay", "--dsn", database, cwd=tmp_path) as process:
                await eventually(partial(_waits_in_the_swap, connection), within_seconds=30)
                with stopped(psutil.Process(process.pid)):
                    await holder.execute("COMMIT")
                    await scribe.append(said("two"))
                    await eventually(
                        partial(projected_to_head, database),
                        within_seconds=PAST_A_STOPPED_ONE_WITHIN_SECONDS,
                    )
                _, errors = await process.communicate()
            # It begins anew by itself, or says in a line that it could not.
            assert process.returncode == 0 or len(errors.splitlines()) == 1
        await finished("replay", "--dsn", database, cwd=tmp_path)
    assert await compare(database, SCHEMA) == []


async def test_interrupted_by_its_user_it_ends_and_the_tables_are_as_they_were(
    database: str, tmp_path: Path
) -> None:
    async with connected(database) as connection, connected(database) as holder:
        await LogWriter(connection).append(joined("alice"), said("one"))
        async with running(Projector(database, SCHEMA, Hints()).run()):
            await eventually(partial(projected_to_head, database))
        await connection.execute("UPDATE squad_messages SET message = 'tampered'")
        await _hold_the_messages(holder)
        async with squad_command("replay", "--dsn", database, cwd=tmp_path) as process:
            await eventually(partial(_waits_in_the_swap, connection), within_seconds=30)
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
        assert (process.returncode, errors.strip()) == (130, b"")
        await holder.execute("COMMIT")
        assert await one(connection, "SELECT message FROM squad_messages") == "tampered"


async def _many_messages(connection: Connection) -> None:
    scribe = LogWriter(connection)
    await scribe.append(joined("alice"))
    for _ in range(MESSAGES // 1_000):
        await scribe.append(*(said("x" * 100) for _ in range(1_000)))


async def _hold_the_messages(holder: Connection) -> None:
    # On a busy machine a replay may take a while to get there.
    await holder.execute("SET idle_in_transaction_session_timeout = 0")
    await holder.execute("BEGIN")
    await holder.execute("SELECT FROM squad_messages FOR UPDATE")


async def _waits_in_the_swap(connection: Connection) -> bool:
    """Whether a replay has locked `projections` and waits for a row of a table."""
    query = """
        SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l USING (pid)
        WHERE a.application_name = 'squad replay' AND a.wait_event_type = 'Lock' AND l.granted
          AND l.relation = 'projections'::regclass AND l.mode = 'ShareRowExclusiveLock'
    """
    return bool(await one(connection, query))


async def _is_gone(connection: Connection) -> bool:
    return not await backends(connection, "squad replay")
