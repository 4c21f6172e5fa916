"""Writers whose connection breaks: nothing acknowledged is lost, nothing comes twice, nobody is held up."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING

import pytest

from eventstore import codec, log
from eventstore.events import AppendAbandoned, MessageSent
from service.memory.squad import Squad
from service.requests import OutcomeUnknown, Unavailable
from tests.support.log import LogWriter, joined, texts, whole_log
from tests.support.parts import (
    connected,
    lock_is_free,
    message,
    running_listener,
    running_writer,
    submit,
    terminate,
)
from tests.support.proxy import Proxy
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from eventstore.recorded import Recorded
    from service.requests import Outcome
    from service.writing.writer import Writer

pytestmark = pytest.mark.faults

NEEDLE = "needle in the stack"
CALLERS = 40
TERMINATIONS = 15

one_trip_or_two = pytest.mark.parametrize("contended", [False, True], ids=["one trip", "holding the lock"])


@pytest.fixture
async def proxy(database: str) -> AsyncIterator[Proxy]:
    async with Proxy(database).running() as running:
        yield running


@pytest.fixture
async def writer(proxy: Proxy) -> AsyncIterator[Writer]:
    """A writer whose way to the database leads through the proxy."""
    async with running_writer(proxy.dsn) as running:
        await submit(running, message("before"))
        yield running


async def _submit_batch(writer: Writer) -> list[Outcome]:
    return await asyncio.gather(*(submit(writer, message(text)) for text in ("first", NEEDLE, "last")))


def _fences(events: Sequence[Recorded]) -> int:
    return sum(isinstance(codec.decode(event), AppendAbandoned) for event in events)


async def _assert_settled(writer: Writer, outcomes: Sequence[Outcome], database: str) -> list[Recorded]:
    """The batch is in the log once, at the positions that its callers were told, and life goes on."""
    await submit(writer, message("after"))
    events = await assert_log_is_sound(database)
    assert texts(events) == ["before", "first", NEEDLE, "last", "after"]
    for outcome in outcomes:
        assert outcome.position is not None
        event = codec.decode(events[outcome.position - 1])
        assert isinstance(event, MessageSent)
        assert event.message_id == outcome.reply["id"]
    async with connected(database) as connection:
        assert await lock_is_free(connection)
    return events


@one_trip_or_two
async def test_a_commit_whose_answer_is_lost_is_found_in_the_log(
    writer: Writer, proxy: Proxy, database: str, contended: bool
) -> None:
    writer._appender.contended = contended
    cut = proxy.cut_after_answer(NEEDLE.encode())
    outcomes = await _submit_batch(writer)
    assert cut.happened.is_set()
    assert _fences(await _assert_settled(writer, outcomes, database)) == 0


@one_trip_or_two
async def test_a_commit_that_never_arrived_is_made_again_behind_a_fence(
    writer: Writer, proxy: Proxy, database: str, contended: bool
) -> None:
    writer._appender.contended = contended
    cut = proxy.cut_before(NEEDLE.encode())
    outcomes = await _submit_batch(writer)
    assert cut.happened.is_set()
    assert _fences(await _assert_settled(writer, outcomes, database)) == 1


async def test_a_commit_that_arrives_after_it_was_given_up_comes_too_late(
    writer: Writer, proxy: Proxy, database: str
) -> None:
    held = proxy.hold(NEEDLE.encode())
    outcomes = await _submit_batch(writer)
    await held.release()
    assert _fences(await _assert_settled(writer, outcomes, database)) == 1


async def test_a_commit_that_arrives_before_it_is_given_up_is_found(
    writer: Writer, proxy: Proxy, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever asks first gets the lock first: the request, not the one who looks for its traces.
    monkeypatch.setattr("service.writing.writer._BACKOFF_SECONDS", (2.0, 2.0))
    held = proxy.hold(NEEDLE.encode())
    batch = asyncio.ensure_future(_submit_batch(writer))
    async with connected(database) as connection:
        # Nobody can find anything out before the request is through.
        await connection.execute("BEGIN")
        await log.lock(connection)
        await held.happened.wait()
        release = asyncio.ensure_future(held.release())
        await eventually(lambda: _waiting_for_the_lock(database))
        await connection.execute("COMMIT")
    await release
    assert _fences(await _assert_settled(writer, await batch, database)) == 0


async def _waiting_for_the_lock(database: str) -> int:
    async with connected(database) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE l.locktype = 'advisory' AND NOT l.granted AND a.query LIKE '%append_events%'"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_a_fence_that_is_lost_as_well_is_put_up_again(
    writer: Writer, proxy: Proxy, database: str
) -> None:
    proxy.cut_before(NEEDLE.encode())
    lost_fence = proxy.cut_before(b"append_abandoned")
    unanswered_fence = proxy.cut_after_answer(b"append_abandoned")
    outcomes = await _submit_batch(writer)
    assert lost_fence.happened.is_set()
    assert unanswered_fence.happened.is_set()
    assert _fences(await _assert_settled(writer, outcomes, database)) == 1


async def test_doubt_after_doubt_is_resolved_each_time(writer: Writer, proxy: Proxy, database: str) -> None:
    for number in range(4):
        proxy.cut_before(f"doubt {number}".encode())
        await submit(writer, message(f"doubt {number}"))
    events = await assert_log_is_sound(database)
    assert texts(events) == ["before", *(f"doubt {number}" for number in range(4))]
    assert _fences(events) == 4


async def test_a_lost_commit_needs_no_fence_where_somebody_else_has_appended_since(
    writer: Writer, proxy: Proxy, database: str
) -> None:
    held = proxy.hold(NEEDLE.encode())
    async with connected(database) as connection:
        scribe = LogWriter(connection)
        await scribe.catch_up()
        await connection.execute("BEGIN")
        await log.lock(connection)
        batch = asyncio.ensure_future(_submit_batch(writer))
        await held.happened.wait()
        await scribe.append(joined("somebody else"))
        await connection.execute("COMMIT")
    outcomes = await batch
    await held.release()
    assert _fences(await _assert_settled(writer, outcomes, database)) == 0


async def test_a_caller_who_loses_patience_in_doubt_is_told_that_it_may_have_happened(
    writer: Writer, proxy: Proxy, database: str
) -> None:
    held = proxy.hold(NEEDLE.encode())
    async with connected(database) as connection:
        await connection.execute("BEGIN")
        await log.lock(connection)
        with pytest.raises(OutcomeUnknown):
            await submit(writer, message(NEEDLE), timeout_seconds=0.3)
        assert held.happened.is_set()
        # This one was never sent, and will not be.
        with pytest.raises(Unavailable):
            await submit(writer, message("never sent"), timeout_seconds=0.05)
    await submit(writer, message("after"))
    assert texts(await assert_log_is_sound(database)) == ["before", "after"]


async def test_a_server_that_stops_answering_is_given_up(
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
    assert texts(await assert_log_is_sound(database)) == ["before", "patient"]


async def test_a_log_that_was_replaced_is_noticed_and_read_anew(writer: Writer, database: str) -> None:
    """As by a standby that took over without the last events, and went on from there."""
    await submit(writer, message("lost with the server"))
    async with connected(database) as connection:
        events = (await whole_log(connection))[:-1]
        await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        await connection.execute("DELETE FROM events WHERE position = %s", (len(events) + 1,))
        await connection.execute("ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_immutable")
        scribe = LogWriter(connection)
        await scribe.catch_up()
        await scribe.append(joined("newcomer"), joined("latecomer"))
        await terminate(connection, "squad writer")
    await submit(writer, message("goes on"))
    assert texts(await assert_log_is_sound(database)) == ["before", "goes on"]
    assert "newcomer" in writer.squad.tables["squad_agents"]


async def test_a_log_that_became_shorter_is_noticed_and_read_anew(writer: Writer, database: str) -> None:
    await submit(writer, message("lost with the server"))
    async with connected(database) as connection:
        await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        await connection.execute("DELETE FROM events WHERE position = (SELECT max(position) FROM events)")
    await submit(writer, message("goes on"))
    assert texts(await assert_log_is_sound(database)) == ["before", "goes on"]


async def test_a_state_that_cannot_take_a_batch_in_is_read_anew_and_the_batch_stands(
    writer: Writer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def failing(*_: object) -> None:
            raise ArithmeticError

        patch.setattr(Squad, "merge", failing)
        await submit(writer, message("once"))
    await submit(writer, message("after"))
    assert texts(await assert_log_is_sound(database)) == ["before", "once", "after"]


def _has_grown(acknowledged: dict[int, str], goal: int) -> bool:
    return len(acknowledged) >= goal


async def test_what_was_acknowledged_is_in_the_log_whenever_backends_end(database: str) -> None:
    """Two writers under load, whose backends are ended at any moment."""
    random = Random(7)
    acknowledged: dict[int, str] = {}
    unknown: set[str] = set()
    enough = asyncio.Event()

    async def call(writer: Writer, name: str) -> None:
        for number in count():
            if enough.is_set():
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
            await eventually(partial(_has_grown, acknowledged, goal))
            # At any moment, on purpose: in the middle of whatever they are at.
            await asyncio.wait([calls], timeout=random.uniform(0.0, 0.05))
            await eventually(lambda: terminate(connection, "squad writer"))
        enough.set()
        await calls
        await eventually(lambda: lock_is_free(connection))
        await submit(one, message("the end"))
        await submit(two, message("the very end"))
    events = await assert_log_is_sound(database)
    for position, text in acknowledged.items():
        event = codec.decode(events[position - 1])
        assert isinstance(event, MessageSent)
        assert event.message == text
    said = Counter(texts(events))
    assert max(said.values()) == 1, "something was said twice"
    assert (
        set(acknowledged.values())
        <= said.keys()
        <= {*acknowledged.values(), *unknown, "the end", "the very end"}
    )
