"""The writer turns commands into durable events, and answers each caller separately."""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import codec, log
from eventstore.connection import connect
from eventstore.events import MessageSent, RequestAnswered
from eventstore.listener import Hints
from service import commands as do
from service.clock import DatabaseClock
from service.decide import decide
from service.requests import CommandFailed, QueueFull, Request, Stopping, Unavailable
from service.writing.writer import Writer
from tests.support.components import (
    connected,
    lock_is_awaited,
    lock_is_free,
    message,
    running,
    running_listener,
    running_writer,
    submit,
)
from tests.support.log import LogWriter, agent_registered, message_sent, message_texts, whole_log
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded
    from service.decide import Decision, DecisionContext
    from service.memory.draft import Draft

POISON = "poison"

# Valid JSON from which Postgres cannot extract the text. The API rejects it.
UNSTORABLE: dict[str, Any] = {"text": "\x00"}


def _unstorable() -> do.SendMessage:
    return do.SendMessage.model_construct(
        from_agent="alice", to_agent=None, message="x", task_id=None, data=UNSTORABLE
    )


@pytest.fixture
def poison_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the decision on a message with the text `POISON` raise an exception."""

    def decide_unless_poison(draft: Draft, command: do.AnyCommand, at: DecisionContext) -> Decision:
        decision = decide(draft, command, at)
        if isinstance(command, do.SendMessage) and command.message == POISON:
            raise ArithmeticError("not to my taste")
        return decision

    monkeypatch.setattr("service.writing.batch.decide", decide_unless_poison)


async def test_command_is_answered_with_the_position_of_its_event(writer: Writer, database: str) -> None:
    outcome = await submit(writer, message("hello"))
    events = await assert_log_is_sound(database)
    assert outcome.position == events[-1].position == writer.squad.head.position
    assert message_texts(events) == ["hello"]


async def test_concurrent_commands_are_each_answered_with_their_own_event(
    writer: Writer, database: str
) -> None:
    outcomes = await asyncio.gather(*(submit(writer, message(str(number))) for number in range(2_500)))
    events = await assert_log_is_sound(database)
    for number, outcome in enumerate(outcomes):
        assert outcome.position is not None
        event = codec.decode(events[outcome.position - 1])
        assert isinstance(event, MessageSent)
        assert event.message == str(number)
        assert event.message_id == outcome.reply["id"]


async def test_commands_that_wait_together_share_a_commit(writer: Writer, database: str) -> None:
    await asyncio.gather(*(submit(writer, message(str(number))) for number in range(100)))
    async with connected(database) as connection:
        cursor = await connection.execute(
            "SELECT count(DISTINCT xmin::text) FROM events WHERE type = 'message_sent'"
        )
        assert (await cursor.fetchone()) in [(1,), (2,)]


async def test_refused_command_does_not_affect_its_neighbours(writer: Writer, database: str) -> None:
    unknown = do.FinishOperation(
        operation_id="0190" + "0" * 4 + "-0000-7000-8000-000000000000", outcome="failed"
    )
    outcomes = await asyncio.gather(
        submit(writer, message("before")), submit(writer, unknown), submit(writer, message("after"))
    )
    assert [outcome.refusal and outcome.refusal.code for outcome in outcomes] == [
        None,
        "operation_not_found",
        None,
    ]
    assert message_texts(await assert_log_is_sound(database)) == ["before", "after"]


@pytest.mark.usefixtures("poison_fails")
async def test_command_that_cannot_be_decided_fails_alone(writer: Writer, database: str) -> None:
    messages = ["one", POISON, "two", POISON, "three"]
    outcomes = await asyncio.gather(
        *(submit(writer, message(text)) for text in messages), return_exceptions=True
    )
    assert [isinstance(outcome, CommandFailed) for outcome in outcomes] == [
        text == POISON for text in messages
    ]
    assert message_texts(await assert_log_is_sound(database)) == ["one", "two", "three"]


@pytest.mark.parametrize("contended", [False, True], ids=["one trip", "holding the lock"])
async def test_command_that_only_the_database_refuses_fails_alone(
    writer: Writer, database: str, contended: bool
) -> None:
    commands = [message(str(number)) for number in range(20)]
    commands[3] = commands[4] = commands[17] = _unstorable()
    writer._appender.contended = contended
    outcomes = await asyncio.gather(
        *(submit(writer, command) for command in commands), return_exceptions=True
    )
    failed = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, CommandFailed)]
    assert failed == [3, 4, 17]
    stored = [str(number) for number in range(20) if number not in failed]
    assert message_texts(await assert_log_is_sound(database)) == stored
    async with connected(database) as connection:
        assert await lock_is_free(connection)
    # The state in memory does not have what the log does not have.
    await submit(writer, message("goes on"))
    await assert_log_is_sound(database)


@pytest.mark.nothing_sealed
async def test_command_is_rejected_when_too_many_wait(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.writing.command_queue.MAX_WAITING_COMMANDS", 3)
    idle = Writer(database, "squad", DatabaseClock(), Hints())
    waiting = [asyncio.ensure_future(submit(idle, message(str(number)))) for number in range(3)]
    await eventually(lambda: len(idle.queue) == 3)
    with pytest.raises(QueueFull):
        await submit(idle, message("one too many"))
    async with running(idle.run()):
        await asyncio.wait(waiting)
    assert idle.queue.bytes == 0


@pytest.mark.nothing_sealed
async def test_command_is_rejected_when_too_many_bytes_wait(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.writing.command_queue.MAX_WAITING_BYTES", 1_000)
    idle = Writer(database, "squad", DatabaseClock(), Hints())
    large = Request(message("x"), "agent:test", "test", size=1_000)
    waiting = asyncio.ensure_future(idle.submit(large))
    await eventually(lambda: len(idle.queue) == 1)
    with pytest.raises(QueueFull):
        await submit(idle, message("y"))
    waiting.cancel()


@pytest.mark.nothing_sealed
async def test_abandoned_commands_leave_the_queue_while_the_database_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.writing.command_queue.MAX_WAITING_COMMANDS", 3)
    nowhere = Writer("host=127.0.0.1 port=1", "squad", DatabaseClock(), Hints())
    async with running(nowhere.run()):
        waiting = [asyncio.ensure_future(submit(nowhere, message(str(number)))) for number in range(2)]
        with pytest.raises(Unavailable):
            await submit(nowhere, message("impatient"), timeout_seconds=0.01)
        waiting[0].cancel()
        await eventually(lambda: len(nowhere.queue) == 1)
        waiting += [asyncio.ensure_future(submit(nowhere, message(str(number)))) for number in range(2)]
        await eventually(lambda: len(nowhere.queue) == 3)
        with pytest.raises(QueueFull):
            await submit(nowhere, message("one too many"))
        for task in waiting:
            task.cancel()
        await eventually(lambda: not nowhere.queue)


@pytest.mark.nothing_sealed
async def test_caller_learns_at_its_timeout_that_the_database_is_unavailable() -> None:
    nowhere = Writer("host=127.0.0.1 port=1", "squad", DatabaseClock(), Hints())
    async with running(nowhere.run()):
        with pytest.raises(Unavailable):
            await submit(nowhere, message("hello"), timeout_seconds=0.05)
        assert nowhere.problem
        assert re.search("cannot be reached: .*port 1 .*refused", nowhere.problem)
        assert not nowhere.ready


async def test_append_to_a_full_disk_is_retried_with_backoff(
    writer: Writer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although connecting succeeds each time. Once there is space, the command is carried out."""
    connected_at: list[float] = []

    async def counted(*arguments: Any, **options: Any) -> Connection:
        connected_at.append(monotonic())
        return await connect(*arguments, **options)

    monkeypatch.setattr("service.writing.writer.connect", counted)
    async with connected(database) as connection:
        await connection.execute(
            "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'No space left on device' USING ERRCODE = 'disk_full'; END $$"
        )
        await connection.execute(
            "CREATE TRIGGER filled BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION fill()"
        )
        waiting = asyncio.ensure_future(submit(writer, message("kept waiting")))
        await eventually(lambda: len(connected_at) > 4)
        await connection.execute("DROP TRIGGER filled ON events")
    await waiting
    assert connected_at[4] - connected_at[0] > 0.1 + 0.2 + 0.4 + 0.8
    assert message_texts(await assert_log_is_sound(database)) == ["kept waiting"]


@pytest.mark.nothing_sealed
async def test_command_whose_caller_no_longer_waits_is_not_carried_out(database: str) -> None:
    idle = Writer(database, "squad", DatabaseClock(), Hints())
    with pytest.raises(Unavailable):
        await submit(idle, message("too late"), timeout_seconds=0.01)
    abandoned = asyncio.ensure_future(submit(idle, message("abandoned")))
    await eventually(lambda: len(idle.queue) == 1)
    abandoned.cancel()
    async with running(idle.run()):
        await submit(idle, do.SetPolicy(daily_tokens=1))
        await submit(idle, message("in time"))
    assert message_texts(await assert_log_is_sound(database)) == ["in time"]


async def test_draining_writer_answers_waiting_commands_and_accepts_no_more(
    writer: Writer, database: str
) -> None:
    waiting = [writer.put(Request(message(str(number)), "agent:test", "test")) for number in range(50)]
    await writer.drain()
    assert all(outcome.done() for outcome in waiting)
    with pytest.raises(Stopping):
        await submit(writer, message("too late"))
    assert len(message_texts(await assert_log_is_sound(database))) == 50


@pytest.mark.nothing_sealed
async def test_cancelled_writer_leaves_no_caller_waiting(database: str) -> None:
    ended = Writer("host=127.0.0.1 port=1", "squad", DatabaseClock(), Hints())
    async with running(ended.run()):
        waiting = asyncio.ensure_future(submit(ended, message("never")))
        await eventually(lambda: len(ended.queue) == 1)
    with pytest.raises(Stopping):
        await waiting


async def test_observer_that_raises_does_not_prevent_answers(writer: Writer, database: str) -> None:
    observed: list[int] = []

    def raising(_: Sequence[Recorded]) -> None:
        raise ArithmeticError

    writer.observers += [raising, lambda events: observed.extend(event.position for event in events)]
    outcome = await submit(writer, message("once"))
    assert observed[-1] == outcome.position
    assert message_texts(await assert_log_is_sound(database)) == ["once"]


# Idempotency ------------------------------------------------------------------------------------------


def _answers(events: Sequence[Recorded]) -> int:
    return sum(isinstance(codec.decode(event), RequestAnswered) for event in events)


async def test_repeat_in_the_same_batch_gets_the_first_answer(writer: Writer, database: str) -> None:
    first, *repeats = await asyncio.gather(
        *(submit(writer, message("once"), key="k", fingerprint="f") for _ in range(5))
    )
    assert first.repeated is None
    for repeat in repeats:
        assert repeat.repeated is not None
        assert repeat.repeated.body["id"] == first.reply["id"]
    events = await assert_log_is_sound(database)
    assert message_texts(events) == ["once"]
    assert _answers(events) == 1


async def test_repeat_in_a_later_batch_gets_the_first_answer(writer: Writer, database: str) -> None:
    first = await submit(writer, message("once"), key="k", fingerprint="f")
    repeat = await submit(writer, message("once"), key="k", fingerprint="f")
    assert repeat.repeated is not None
    assert repeat.repeated.body == {"id": first.reply["id"], "position": first.position}
    assert message_texts(await assert_log_is_sound(database)) == ["once"]


async def test_repeat_with_another_body_is_refused(writer: Writer, database: str) -> None:
    outcomes = [
        await submit(writer, message("once"), key="k", fingerprint="f"),
        await submit(writer, message("other"), key="k", fingerprint="g"),
        *await asyncio.gather(
            submit(writer, message("new"), key="l", fingerprint="f"),
            submit(writer, message("newer"), key="l", fingerprint="g"),
        ),
    ]
    codes = [outcome.refusal and outcome.refusal.code for outcome in outcomes]
    assert codes == [None, "idempotency_mismatch", None, "idempotency_mismatch"]
    assert message_texts(await assert_log_is_sound(database)) == ["once", "new"]


async def test_repeat_at_another_writer_gets_the_first_answer(writer: Writer, database: str) -> None:
    async with running_writer(database) as other:
        outcomes = await asyncio.gather(
            *(submit(each, message("once"), key="k", fingerprint="f") for each in (writer, other) * 10)
        )
    assert sum(outcome.repeated is None for outcome in outcomes) == 1
    (first,) = [outcome for outcome in outcomes if outcome.repeated is None]
    for outcome in outcomes:
        if outcome.repeated:
            assert outcome.repeated.body["id"] == first.reply["id"]
    events = await assert_log_is_sound(database)
    assert message_texts(events) == ["once"]
    assert _answers(events) == 1


@pytest.mark.usefixtures("poison_fails")
async def test_failed_command_can_be_retried_with_its_key(writer: Writer) -> None:
    with pytest.raises(CommandFailed):
        await submit(writer, message(POISON), key="k", fingerprint="f")
    outcome = await submit(writer, message("better"), key="k", fingerprint="g")
    assert outcome.repeated is None
    assert outcome.refusal is None


# Others on the same log -------------------------------------------------------------------------------


async def test_writer_decides_under_the_lock_after_a_lost_race_and_returns_to_one_trip(
    writer: Writer, database: str
) -> None:
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        await submit(writer, message("alone"))
        assert not writer.contended
        await log_writer.catch_up()
        await log_writer.append(message_sent("somebody else", agent="alice"))
        await submit(writer, message("beaten to it"))
        assert writer.contended
        await submit(writer, message("alone again"))
        assert not writer.contended
        assert await lock_is_free(connection)
        assert message_texts(await whole_log(connection)) == [
            "alone",
            "somebody else",
            "beaten to it",
            "alone again",
        ]
    await assert_log_is_sound(database)


async def test_commands_that_arrive_while_the_lock_is_awaited_join_the_batch(
    writer: Writer, database: str
) -> None:
    async with connected(database) as holder, connected(database) as connection:
        writer._appender.contended = True
        async with holder.transaction():
            await log.lock(holder)
            first = asyncio.ensure_future(submit(writer, message("first")))
            await eventually(partial(lock_is_awaited, connection))
            others = [message("second"), _unstorable(), message("third")]
            late = [asyncio.ensure_future(submit(writer, command)) for command in others]
            await eventually(lambda: len(writer.queue) == 3)
        _, second, failed, third = await asyncio.gather(first, *late, return_exceptions=True)
        assert isinstance(failed, CommandFailed)
        assert not isinstance(second, Exception)
        assert not isinstance(third, Exception)
        assert message_texts(await assert_log_is_sound(database)) == ["first", "second", "third"]
        # They were appended together, or in halves if it was the database that refused one of them.
        sent = [event for event in await whole_log(connection) if event.type == MessageSent.type]
        halved = "the database refused" in str(failed).lower()
        assert sent[0].recorded_at == sent[1].recorded_at
        assert (sent[1].recorded_at < sent[2].recorded_at) == halved


@pytest.mark.nothing_sealed
async def test_writer_reads_others_events_on_a_hint_and_notifies_its_observers(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.writing.writer.POLL_SECONDS", 60.0)
    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events) as writer,
        connected(database) as connection,
    ):
        observed: list[int] = []
        writer.observers.append(lambda events: observed.extend(event.position for event in events))
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await log_writer.append(*(agent_registered(name) for name in ("alice", "bob", "carol")))
        await eventually(lambda: writer.squad.head.position == log_writer.head.position)
        assert observed == [
            log_writer.head.position - 2,
            log_writer.head.position - 1,
            log_writer.head.position,
        ]


@pytest.mark.nothing_sealed
async def test_writer_reads_others_events_without_any_hint(writer: Writer, database: str) -> None:
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await log_writer.append(agent_registered("unheard"))
    await eventually(lambda: writer.squad.head.position == log_writer.head.position, within_seconds=3)


async def test_hint_beyond_the_head_does_not_disturb_the_writer(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    hints = Hints()
    async with running_writer(database, hints=hints) as writer:
        hints.wake(10**12)
        for number in range(10):
            await submit(writer, message(str(number)))
        assert writer.squad.head.position < 100
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    # On a busy machine, the time of a decision can have passed when its events arrive.
    assert not [text for text in warnings if "clock" not in text]


async def test_unknown_event_stops_the_writer_and_is_reported(writer: Writer, database: str) -> None:
    """As during a rolling upgrade to a newer version of the software."""
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await log_writer.append(agent_registered("newcomer"), schema_version=9)
        with pytest.raises(Unavailable):
            await submit(writer, message("hello"), timeout_seconds=0.5)
        await eventually(lambda: writer.problem and "agent_registered v9" in writer.problem)
        assert not writer.ready
        assert await lock_is_free(connection)
        assert await log.head_position(connection) == log_writer.head.position


# Time -------------------------------------------------------------------------------------------------


class WrongClock(DatabaseClock):
    """A clock that is wrong by `error` until it is adjusted the next time."""

    def __init__(self) -> None:
        super().__init__()
        self.error = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.error

    def adjust(self, reading: datetime, sent_at: float, received_at: float) -> None:
        self.error = timedelta(0)
        super().adjust(reading, sent_at, received_at)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_wrong_clock_is_corrected_and_the_command_carried_out(
    database: str, hours: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise a poll might correct it before the command arrives.
    monkeypatch.setattr("service.writing.writer.POLL_SECONDS", 60.0)
    clock = WrongClock()
    async with running_writer(database, clock=clock) as writer:
        for number in range(3):
            clock.error = timedelta(hours=hours)
            await submit(writer, message(str(number)))
        assert not writer.contended
    assert sum("clock" in record.message for record in caplog.records) >= 3
    events = await assert_log_is_sound(database)
    assert message_texts(events) == ["0", "1", "2"]
    now = datetime.now(UTC)
    assert all(abs(event.recorded_at - now) < timedelta(minutes=1) for event in events)


async def test_process_with_a_wrong_clock_records_the_databases_time(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = DatabaseClock()
    monkeypatch.setattr(clock, "_offset_seconds", clock._offset_seconds + 86_400)
    async with running_writer(database, clock=clock) as writer:
        await submit(writer, message("today"))
    (*_, last) = await assert_log_is_sound(database)
    assert abs(last.recorded_at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.nothing_sealed
async def test_wrong_clock_is_corrected_without_any_command(database: str, hours: int) -> None:
    """As after the machine was suspended. Reads use this clock too."""
    clock = DatabaseClock()
    async with running_writer(database, clock=clock):
        clock._offset_seconds += 3_600 * hours
        error = timedelta(seconds=3_600)

        def is_right() -> bool:
            return abs(clock.now() - datetime.now(UTC)) < error / 2

        assert not is_right()
        await eventually(is_right, within_seconds=5)


async def test_time_stands_still_while_the_databases_clock_is_behind_the_log(
    writer: Writer, database: str
) -> None:
    """As after the server's clock was set back: the last events of the log are in its future."""
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        later = datetime.now(UTC) + timedelta(minutes=5)
        await log_writer.append(agent_registered("from later"), at=later)
    await submit(writer, message("after it"))
    (*_, before, last) = await assert_log_is_sound(database)
    assert (before.recorded_at, last.recorded_at) == (later, later)
