"""A log whose end was replaced: a process continues with what the log holds now, and with nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import pooler
from service import commands as do
from tests.support.agents import when
from tests.support.components import (
    connected,
    message,
    running_listener,
    running_writer,
    submit,
    terminate_backends,
)
from tests.support.jobs import define, running_job_process
from tests.support.log import LogWriter, agent_registered, message_texts
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    import psycopg

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent
    from tests.support.agents import Agents


async def replace_events_after(connection: Connection, after: int, *events: AnyEvent) -> None:
    """Replace the events after a position, like a fail-over to a standby that lacked them."""
    await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
    await connection.execute("DELETE FROM events WHERE position > %s", (after,))
    await connection.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_immutable")
    if events:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await log_writer.append(*events)


async def test_run_that_is_no_longer_in_the_log_is_cancelled(agents: Agents, database: str) -> None:
    never = asyncio.Event()
    agents.on("/poll", when(never))
    async with (
        running_job_process(database, agents.url) as job_process,
        connected(database) as connection,
    ):
        await define(job_process, "poll")
        before = job_process.writer.squad.head.position
        await job_process.run_now("poll")
        await eventually(lambda: agents.calls)
        (call,) = job_process.scheduler._tasks
        await replace_events_after(connection, before)
        assert await terminate_backends(connection, "squad writer") == 1
        await eventually(lambda: call.cancelled() or call.done())
        assert job_process.writer.replacements == 1
        await submit(job_process.writer, message("goes on"))
    assert "run_started" not in {event.type for event in await assert_log_is_sound(database)}


async def test_other_writers_events_are_noticed_at_once_after_the_log_became_shorter(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events) as writer,
        connected(database) as connection,
    ):
        before = writer.squad.head.position
        for number in range(10):
            await submit(writer, message(f"lost {number}"))
        await replace_events_after(connection, before)
        await terminate_backends(connection, "squad writer")
        await eventually(lambda: writer.ready and writer.replacements == 1)
        monkeypatch.setattr("service.writing.writer.POLL_SECONDS", 60.0)
        # A wait with the old interval may still be in progress, so only the second event is conclusive.
        for name in ("newcomer", "latecomer"):
            log_writer = LogWriter(connection)
            await log_writer.catch_up()
            (event,) = await log_writer.append(agent_registered(name))
            await eventually(lambda at=event.position: writer.squad.head.position >= at)  # type: ignore[misc]


@pytest.fixture
def _behind_a_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make connections outlive a change of the server, as behind a pooler."""

    async def is_direct(connection: psycopg.AsyncConnection[Any], schema: str) -> bool:
        del schema
        connection.prepare_threshold = None
        return False

    monkeypatch.setattr(pooler, "is_direct", is_direct)


@pytest.mark.usefixtures("_behind_a_pooler")
@pytest.mark.parametrize("contended", [False, True], ids=["one trip", "holding the lock"])
@pytest.mark.parametrize("more", [0, 1], ids=["as long", "longer"])
async def test_nothing_is_appended_to_a_replaced_log_behind_a_pooler(
    database: str, monkeypatch: pytest.MonkeyPatch, contended: bool, more: int
) -> None:
    """Positions do not tell the logs apart; only hashes do."""
    monkeypatch.setattr("service.writing.writer.POLL_SECONDS", 60.0)
    async with running_writer(database) as writer, connected(database) as connection:
        before = writer.squad.head.position
        await submit(writer, do.RegisterAgent(name="gone", role="tester"))
        lost = writer.squad.head.position - before
        others = [f"newcomer-{number}" for number in range(lost + more)]
        await replace_events_after(connection, before, *map(agent_registered, others))
        writer._appender.contended = contended
        await submit(writer, message("goes on"))
        assert writer.replacements == 1
        assert {*others, "alice"} == writer.squad.tables["squad_agents"].keys()
    assert message_texts(await assert_log_is_sound(database)) == ["goes on"]
