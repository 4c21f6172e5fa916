"""`squad replay` that is killed, suspended or interrupted leaves the live tables unchanged or replaced."""

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
from tests.support.command import squad_command, squad_output
from tests.support.components import SCHEMA, backend_pids, connected, running
from tests.support.log import LogWriter, agent_registered, message_sent
from tests.support.signals import suspended
from tests.support.tables import fetch_value, generation, project
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from eventstore.connection import Connection

pytestmark = pytest.mark.faults

MESSAGES = 10_000
KILLS = 5

RECOVERY_SECONDS = 20.0
"""The database ends an idle transaction after 10 seconds."""


async def test_replay_killed_at_any_moment_leaves_the_tables_unchanged_or_replaced(
    database: str, tmp_path: Path
) -> None:
    random = Random(11)
    arguments = ("replay", "--dsn", database)
    async with connected(database) as connection:
        await _append_messages(connection)
        await project(database)
        await connection.execute("UPDATE squad_messages SET task_id = 'tampered'")
        untouched = 0
        for _ in range(KILLS):
            before = await generation(connection)
            async with squad_command(*arguments, cwd=tmp_path) as process:
                await eventually(partial(backend_pids, connection, "squad replay"), within_seconds=30)
                # At an arbitrary moment, on purpose.
                await asyncio.wait([asyncio.create_task(process.wait())], timeout=random.uniform(0, 0.3))
                if process.returncode is None:
                    process.kill()
            await eventually(partial(_is_gone, connection))
            tampered = await fetch_value(
                connection, "SELECT count(*) FROM squad_messages WHERE task_id = 'tampered'"
            )
            assert (await generation(connection), tampered) in ((before, MESSAGES), (before + 1, 0))
            untouched += tampered == MESSAGES
            await connection.execute("UPDATE squad_messages SET task_id = 'tampered'")
        assert untouched, "no replay was killed before it had finished"
        printed = await squad_output(*arguments, cwd=tmp_path)
    assert f"replayed {MESSAGES + 1:,} events" in printed
    assert await compare(database, SCHEMA) == []


async def test_replay_killed_during_the_swap_releases_its_locks_and_the_next_one_succeeds(
    database: str, tmp_path: Path
) -> None:
    arguments = ("replay", "--dsn", database)
    async with connected(database) as connection, connected(database) as holder:
        log_writer = LogWriter(connection)
        projector = Projector(database, SCHEMA, Hints())
        async with running(projector.run()):
            await log_writer.append(agent_registered("alice"), message_sent("one"))
            await eventually(partial(projected_to_head, database))
            await connection.execute("UPDATE squad_messages SET message = 'tampered'")
            before = await generation(connection)
            await _lock_the_messages(holder)
            async with squad_command(*arguments, cwd=tmp_path) as process:
                await eventually(partial(_waits_in_the_swap, connection), within_seconds=30)
                process.kill()
                await process.wait()
            await eventually(partial(_is_gone, connection))
            await holder.execute("COMMIT")
            assert await generation(connection) == before
            assert await fetch_value(connection, "SELECT message FROM squad_messages") == "tampered"
            await log_writer.append(message_sent("two"))
            await eventually(partial(projected_to_head, database))
            await squad_output(*arguments, cwd=tmp_path)
            await log_writer.append(message_sent("three"))
            await eventually(partial(projected_to_head, database))
    assert await compare(database, SCHEMA) == []


async def test_replay_suspended_during_the_swap_blocks_the_projector_only_for_seconds(
    database: str, tmp_path: Path
) -> None:
    async with connected(database) as connection, connected(database) as holder:
        log_writer = LogWriter(connection)
        async with running(Projector(database, SCHEMA, Hints()).run()):
            await log_writer.append(agent_registered("alice"), message_sent("one"))
            await eventually(partial(projected_to_head, database))
            await connection.execute("UPDATE squad_messages SET message = 'tampered'")
            await _lock_the_messages(holder)
            async with squad_command("replay", "--dsn", database, cwd=tmp_path) as process:
                await eventually(partial(_waits_in_the_swap, connection), within_seconds=30)
                with suspended(psutil.Process(process.pid)):
                    await holder.execute("COMMIT")
                    await log_writer.append(message_sent("two"))
                    await eventually(
                        partial(projected_to_head, database),
                        within_seconds=RECOVERY_SECONDS,
                    )
                _, errors = await process.communicate()
            # It starts over by itself, or reports in one line that it could not.
            assert process.returncode == 0 or len(errors.splitlines()) == 1
        await squad_output("replay", "--dsn", database, cwd=tmp_path)
    assert await compare(database, SCHEMA) == []


async def test_interrupted_replay_exits_and_leaves_the_tables_unchanged(
    database: str, tmp_path: Path
) -> None:
    async with connected(database) as connection, connected(database) as holder:
        await LogWriter(connection).append(agent_registered("alice"), message_sent("one"))
        async with running(Projector(database, SCHEMA, Hints()).run()):
            await eventually(partial(projected_to_head, database))
        await connection.execute("UPDATE squad_messages SET message = 'tampered'")
        await _lock_the_messages(holder)
        async with squad_command("replay", "--dsn", database, cwd=tmp_path) as process:
            await eventually(partial(_waits_in_the_swap, connection), within_seconds=30)
            process.send_signal(signal.SIGINT)
            _, errors = await process.communicate()
        assert (process.returncode, errors.strip()) == (130, b"")
        await holder.execute("COMMIT")
        assert await fetch_value(connection, "SELECT message FROM squad_messages") == "tampered"


async def _append_messages(connection: Connection) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(agent_registered("alice"))
    for _ in range(MESSAGES // 1_000):
        await log_writer.append(*(message_sent("x" * 100) for _ in range(1_000)))


async def _lock_the_messages(holder: Connection) -> None:
    # On a busy machine, a replay may take a while to reach the swap.
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
    return bool(await fetch_value(connection, query))


async def _is_gone(connection: Connection) -> bool:
    return not await backend_pids(connection, "squad replay")
