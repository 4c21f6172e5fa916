"""A log that is another one than it was: a process goes on with what is in it, and with nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import pooler
from service import commands as do
from tests.support.agents import when
from tests.support.jobs import define, running_member
from tests.support.log import LogWriter, joined, texts
from tests.support.parts import (
    connected,
    message,
    running_listener,
    running_writer,
    submit,
    terminate,
)
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    import psycopg

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent
    from tests.support.agents import Agents


async def replace_the_end(connection: Connection, after: int, *events: AnyEvent) -> None:
    """The log goes on otherwise after a position, as on a standby that lacked what came then."""
    await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
    await connection.execute("DELETE FROM events WHERE position > %s", (after,))
    await connection.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_immutable")
    if events:
        scribe = LogWriter(connection)
        await scribe.catch_up()
        await scribe.append(*events)


async def test_a_run_that_is_not_in_the_log_any_more_is_given_up(agents: Agents, database: str) -> None:
    never = asyncio.Event()
    agents.on("/poll", when(never))
    async with (
        running_member(database, agents.url) as member,
        connected(database) as connection,
    ):
        await define(member, "poll")
        before = member.writer.squad.head.position
        await member.run_now("poll")
        await eventually(lambda: agents.calls)
        (call,) = member.scheduler._tasks
        await replace_the_end(connection, before)
        assert await terminate(connection, "squad writer") == 1
        await eventually(lambda: call.cancelled() or call.done())
        assert member.writer.replacements == 1
        await submit(member.writer, message("goes on"))
    assert "run_started" not in {event.type for event in await assert_log_is_sound(database)}


async def test_what_others_append_is_heard_of_at_once_also_after_the_log_became_shorter(
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
        await replace_the_end(connection, before)
        await terminate(connection, "squad writer")
        await eventually(lambda: writer.ready and writer.replacements == 1)
        monkeypatch.setattr("service.writing.writer.POLL_SECONDS", 60.0)
        # One more look may be under way that was not yet told to be patient.
        for name in ("newcomer", "latecomer"):
            scribe = LogWriter(connection)
            await scribe.catch_up()
            (event,) = await scribe.append(joined(name))
            await eventually(lambda at=event.position: writer.squad.head.position >= at)  # type: ignore[misc]


@pytest.fixture
def _behind_a_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections outlive the server, and lead to another one without a word."""

    async def is_direct(connection: psycopg.AsyncConnection[Any], schema: str) -> bool:
        del schema
        connection.prepare_threshold = None
        return False

    monkeypatch.setattr(pooler, "is_direct", is_direct)


@pytest.mark.usefixtures("_behind_a_pooler")
@pytest.mark.parametrize("contended", [False, True], ids=["one trip", "holding the lock"])
@pytest.mark.parametrize("more", [0, 1], ids=["as long", "longer"])
async def test_nothing_is_appended_to_another_log_behind_a_pooler(
    database: str, monkeypatch: pytest.MonkeyPatch, contended: bool, more: int
) -> None:
    """Its positions are the same, so that only hashes tell."""
    monkeypatch.setattr("service.writing.writer.POLL_SECONDS", 60.0)
    async with running_writer(database) as writer, connected(database) as connection:
        before = writer.squad.head.position
        await submit(writer, do.RegisterAgent(name="gone", role="tester"))
        lost = writer.squad.head.position - before
        others = [f"newcomer-{number}" for number in range(lost + more)]
        await replace_the_end(connection, before, *map(joined, others))
        writer._appender.contended = contended
        await submit(writer, message("goes on"))
        assert writer.replacements == 1
        assert {*others, "alice"} == writer.squad.tables["squad_agents"].keys()
    assert texts(await assert_log_is_sound(database)) == ["goes on"]
