"""Writers whose connection breaks: no acknowledged write is lost or repeated, and no caller is blocked."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import codec, log
from eventstore.connection import connect
from eventstore.events import AppendAbandoned, MessageSent
from service.memory.squad import Squad
from service.requests import OutcomeUnknown, Unavailable
from tests.support.components import (
    connected,
    lock_is_free,
    message,
    running_listener,
    running_writer,
    submit,
    terminate_backends,
)
from tests.support.log import LogWriter, agent_registered, message_texts, whole_log
from tests.support.proxy import Proxy
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from service.requests import Outcome
    from service.writing.writer import Writer

pytestmark = pytest.mark.faults

NEEDLE = "needle in the stack"
CALLERS = 40
TERMINATIONS = 15

with_and_without_the_lock = pytest.mark.parametrize(
    "contended", [False, True], ids=["one trip", "holding the lock"]
)


@pytest.fixture
async def proxy(database: str) -> AsyncIterator[Proxy]:
    async with Proxy(database).running() as running:
        yield running


@pytest.fixture
async def writer(proxy: Proxy) -> AsyncIterator[Writer]:
    """A writer that connects to the database through the proxy."""
    async with running_writer(proxy.dsn) as running:
        await submit(running, message("before"))
        yield running


async def _submit_batch(writer: Writer) -> list[Outcome]:
    return await asyncio.gather(*(submit(writer, message(text)) for text in ("first", NEEDLE, "last")))


def _fence_count(events: Sequence[Recorded]) -> int:
    return sum(isinstance(codec.decode(event), AppendAbandoned) for event in events)


async def _assert_settled(writer: Writer, outcomes: Sequence[Outcome], database: str) -> list[Recorded]:
    """Fail unless the log has the batch once, at the acknowledged positions, and the writer continues."""
    await submit(writer, message("after"))
    events = await assert_log_is_sound(database)
    assert message_texts(events) == ["before", "first", NEEDLE, "last", "after"]
    for outcome in outcomes:
        assert outcome.position is not None
        event = codec.decode(events[outcome.position - 1])
        assert isinstance(event, MessageSent)
        assert event.message_id == outcome.reply["id"]
    async with connected(database) as connection:
        assert await lock_is_free(connection)
    return events


@with_and_without_the_lock
async def test_commit_whose_answer_is_lost_is_found_in_the_log(
    writer: Writer, proxy: Proxy, database: str, contended: bool
) -> None:
    writer._appender.contended = contended
    cut = proxy.cut_after_answer(NEEDLE.encode())
    outcomes = await _submit_batch(writer)
    assert cut.happened.is_set()
    assert _fence_count(await _assert_settled(writer, outcomes, database)) == 0


@with_and_without_the_lock
async def test_commit_that_never_arrived_is_repeated_after_a_fence(
    writer: Writer, proxy: Proxy, database: str, contended: bool
) -> None:
    writer._appender.contended = contended
    cut = proxy.cut_before(NEEDLE.encode())
    outcomes = await _submit_batch(writer)
    assert cut.happened.is_set()
    assert _fence_count(await _assert_settled(writer, outcomes, database)) == 1


async def test_commit_that_arrives_after_the_fence_has_no_effect(
    writer: Writer, proxy: Proxy, database: str
) -> None:
    held = proxy.hold(NEEDLE.encode())
    outcomes = await _submit_batch(writer)
    await held.release()
    assert _fence_count(await _assert_settled(writer, outcomes, database)) == 1


async def test_commit_that_arrives_late_but_before_the_check_is_found(
    writer: Writer, proxy: Proxy, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_connect = asyncio.Event()

    async def connect_later(*arguments: Any, **options: Any) -> Connection:
        await may_connect.wait()
        return await connect(*arguments, **options)

    monkeypatch.setattr("service.writing.writer.connect", connect_later)
    held = proxy.hold(NEEDLE.encode())
    batch = asyncio.ensure_future(_submit_batch(writer))
    async with connected(database) as connection:
        await connection.execute("BEGIN")
        await log.lock(connection)
        await held.happened.wait()
        release = asyncio.ensure_future(held.release())
        await eventually(lambda: _appends_waiting_for_the_lock(database))
        # The lock is granted in the order of requests: first to the late commit, then to the check for it.
        may_connect.set()
        await connection.execute("COMMIT")
    await release
    assert _fence_count(await _assert_settled(writer, await batch, database)) == 0


async def _appends_waiting_for_the_lock(database: str) -> int:
    async with connected(database) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE l.locktype = 'advisory' AND NOT l.granted AND a.query LIKE '%append_events%'"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_lost_fence_is_appended_again(writer: Writer, proxy: Proxy, database: str) -> None:
    proxy.cut_before(NEEDLE.encode())
    lost_fence = proxy.cut_before(b"append_abandoned")
    unanswered_fence = proxy.cut_after_answer(b"append_abandoned")
    outcomes = await _submit_batch(writer)
    assert lost_fence.happened.is_set()
    assert unanswered_fence.happened.is_set()
    assert _fence_count(await _assert_settled(writer, outcomes, database)) == 1


async def test_every_one_of_several_lost_commits_is_resolved(
    writer: Writer, proxy: Proxy, database: str
) -> None:
    for number in range(4):
        proxy.cut_before(f"doubt {number}".encode())
        await submit(writer, message(f"doubt {number}"))
    events = await assert_log_is_sound(database)
    assert message_texts(events) == ["before", *(f"doubt {number}" for number in range(4))]
    assert _fence_count(events) == 4


async def test_lost_commit_needs_no_fence_when_another_process_has_appended_since(
    writer: Writer, proxy: Proxy, database: str
) -> None:
    held = proxy.hold(NEEDLE.encode())
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await connection.execute("BEGIN")
        await log.lock(connection)
        batch = asyncio.ensure_future(_submit_batch(writer))
        await held.happened.wait()
        await log_writer.append(agent_registered("somebody else"))
        await connection.execute("COMMIT")
    outcomes = await batch
    await held.release()
    assert _fence_count(await _assert_settled(writer, outcomes, database)) == 0


async def test_caller_that_times_out_during_a_commit_gets_outcome_unknown(
    writer: Writer, proxy: Proxy, database: str
) -> None:
    held = proxy.hold(NEEDLE.encode())
    async with connected(database) as connection:
        await connection.execute("BEGIN")
        await log.lock(connection)
        with pytest.raises(OutcomeUnknown):
            await submit(writer, message(NEEDLE), timeout_seconds=0.3)
        assert held.happened.is_set()
        # This command was never sent to the database, and will not be.
        with pytest.raises(Unavailable):
            await submit(writer, message("never sent"), timeout_seconds=0.05)
    await submit(writer, message("after"))
    assert message_texts(await assert_log_is_sound(database)) == ["before", "after"]


async def test_writer_that_waits_too_long_for_the_server_is_not_ready_until_it_answers(
    writer: Writer, proxy: Proxy, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.writing.appender.STUCK_AFTER_SECONDS", 0.2)
    async with connected(database) as connection:
        await connection.execute("BEGIN")
        await log.lock(connection)
        waiting = asyncio.ensure_future(submit(writer, message("patient")))
        await eventually(lambda: not writer.ready)
        assert not waiting.done()
    await waiting
    assert message_texts(await assert_log_is_sound(database)) == ["before", "patient"]


async def test_replaced_log_is_detected_and_read_again(writer: Writer, database: str) -> None:
    """As after fail-over to a standby that lacked the last events and appended others."""
    await submit(writer, message("lost with the server"))
    async with connected(database) as connection:
        events = (await whole_log(connection))[:-1]
        await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        await connection.execute("DELETE FROM events WHERE position = %s", (len(events) + 1,))
        await connection.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_immutable")
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await log_writer.append(agent_registered("newcomer"), agent_registered("latecomer"))
        await terminate_backends(connection, "squad writer")
    await submit(writer, message("goes on"))
    assert message_texts(await assert_log_is_sound(database)) == ["before", "goes on"]
    assert "newcomer" in writer.squad.tables["squad_agents"]


async def test_truncated_log_is_detected_and_read_again(writer: Writer, database: str) -> None:
    await submit(writer, message("lost with the server"))
    async with connected(database) as connection:
        await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        await connection.execute("DELETE FROM events WHERE position = (SELECT max(position) FROM events)")
    await submit(writer, message("goes on"))
    assert message_texts(await assert_log_is_sound(database)) == ["before", "goes on"]


async def test_state_is_read_again_when_a_committed_batch_cannot_be_merged(
    writer: Writer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def failing(*_: object) -> None:
            raise ArithmeticError

        patch.setattr(Squad, "merge", failing)
        await submit(writer, message("once"))
    await submit(writer, message("after"))
    assert message_texts(await assert_log_is_sound(database)) == ["before", "once", "after"]


def _has_reached(acknowledged: dict[int, str], goal: int) -> bool:
    return len(acknowledged) >= goal


async def test_acknowledged_commands_are_in_the_log_when_backends_are_terminated_at_random(
    database: str,
) -> None:
    """The backends of two writers under load are terminated at arbitrary moments."""
    random = Random(7)
    acknowledged: dict[int, str] = {}
    unknown: set[str] = set()
    done = asyncio.Event()

    async def call(writer: Writer, name: str) -> None:
        for number in count():
            if done.is_set():
                return
            text = f"{name} says {number}"
            try:
                outcome = await submit(writer, message(text, agent=name))
            except OutcomeUnknown:
                unknown.add(text)
                continue
            assert outcome.position is not None
            assert outcome.position not in acknowledged
            acknowledged[outcome.position] = text

    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events) as one,
        running_writer(database, hints=listener.events) as two,
        connected(database) as connection,
    ):
        calls = asyncio.gather(*(call((one, two)[n % 2], f"caller-{n}") for n in range(CALLERS)))
        for _ in range(TERMINATIONS):
            goal = len(acknowledged) + 1
            await eventually(partial(_has_reached, acknowledged, goal))
            # At an arbitrary moment, on purpose.
            await asyncio.wait([calls], timeout=random.uniform(0.0, 0.05))
            await eventually(lambda: terminate_backends(connection, "squad writer"))
        done.set()
        await calls
        await eventually(lambda: lock_is_free(connection))
        await submit(one, message("the end"))
        await submit(two, message("the very end"))
    events = await assert_log_is_sound(database)
    for position, text in acknowledged.items():
        event = codec.decode(events[position - 1])
        assert isinstance(event, MessageSent)
        assert event.message == text
    logged = Counter(message_texts(events))
    assert max(logged.values()) == 1, "a message is in the log twice"
    assert (
        set(acknowledged.values())
        <= logged.keys()
        <= {*acknowledged.values(), *unknown, "the end", "the very end"}
    )
