"""The squad as it was: at every position, the state folded from the log is what was in memory then."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from benchmarks.history import copy_in
from benchmarks.simulated_squad import SimulatedSquad
from eventstore import codec, log, lookup
from eventstore.errors import LogNotUnderstood, StoreUnavailable
from eventstore.listener import Hints
from service import commands as do
from service.history import folding, snapshots
from service.history.folding import BeyondTheLog, TookTooLong, load_open, snapshot_writer
from service.history.time_travel import check_snapshots, squad_at, state_at
from service.memory.draft import Draft
from service.memory.squad import Squad
from tests.support.components import connected, message, running_writer, submit
from tests.support.log import LogWriter, agent_registered, message_sent, whole_log
from tests.support.log_tampering import triggers_disabled
from tests.support.random_history import RandomHistory
from tests.support.squads import contents
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded

EVENTS = 5_000
POSITIONS = 1_000


@pytest.fixture
def frequent_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots are closer together than usual, and pages shorter."""
    monkeypatch.setattr(snapshots, "distance", lambda _: 100)
    monkeypatch.setattr(folding, "PAGE_EVENTS", 50)


class Reference:
    """The simplest possible fold, event by event: nothing is removed from memory before a state is read."""

    def __init__(self, events: Sequence[Recorded]) -> None:
        self._events = events
        self._draft = Draft(Squad())

    def at(self, position: int) -> dict[str, Any]:
        """Return the squad at a position; positions must be requested in ascending order."""
        for recorded in self._events[self._draft.head.position : position]:
            self._draft.fold(codec.decode(recorded), recorded)
        squad = Squad()
        squad.merge(self._draft)
        return contents(squad)


async def _fill_log(connection: Connection) -> dict[int, dict[str, Any]]:
    """Fill the log with a history of every event type; return what was in memory after each batch."""
    simulated = SimulatedSquad(seed=5, open_things=30)
    now = await log.clock(connection) - timedelta(days=1)
    page = simulated.first(now)
    states: dict[int, dict[str, Any]] = {}
    # The size of a batch depends on the time of day: the day's budget may end in the meantime.
    while len(page) < EVENTS or len(states) < POSITIONS // 5:
        states[simulated.squad.head.position] = contents(simulated.squad.copy())
        now += timedelta(seconds=12)
        page += simulated.more(now)
    await copy_in(connection, page)
    return states


@pytest.mark.usefixtures("frequent_snapshots")
async def test_state_at_a_thousand_positions_is_what_was_in_memory(connection: Connection) -> None:
    states = await _fill_log(connection)
    events = await whole_log(connection)
    random = Random(1)
    batch_ends = random.sample(sorted(states), POSITIONS // 5)
    positions = sorted({*batch_ends, *random.sample(range(1, len(events) + 1), POSITIONS)})
    await state_at(connection, positions[-1], await snapshot_writer(connection))
    # Missing and corrupt snapshots only make it slower.
    taken = await snapshots.positions(connection)
    assert len(taken) > 15
    await connection.execute("DELETE FROM snapshots WHERE position = ANY(%s)", (taken[4:7],))
    await connection.execute(
        "UPDATE snapshots SET state = set_byte(state, 99, 255 - get_byte(state, 99))"
        " WHERE position = ANY(%s)",
        (taken[9:11],),
    )
    reference = Reference(events)
    for position in positions:
        then = contents(await state_at(connection, position))
        assert then == reference.at(position), position
        if position in states:
            assert then == states[position], position
    assert [fault.position for fault in await check_snapshots(connection)] == taken[9:11]


async def test_state_is_what_two_processes_had_in_memory(database: str, connection: Connection) -> None:
    states: list[Squad] = []
    hints = Hints()
    async with (
        running_writer(database, hints=hints) as one,
        running_writer(database, hints=hints) as other,
    ):
        one.observers.append(lambda _: states.append(one.squad.copy()))
        other.observers.append(lambda _: states.append(other.squad.copy()))
        history = RandomHistory(seed=21)
        for turn in range(400):
            command = history.next()
            history.note_outcome(command, await submit((one, other)[turn % 2], command))
    # What the other process reopened must be read before it can be compared.
    assert any(squad.absent for squad in states)
    for squad in states:
        await load_open(connection, squad)
        assert contents(await state_at(connection, squad.head.position)) == contents(squad)


async def test_email_reopened_by_another_process_is_loaded_into_memory(database: str) -> None:
    hints = Hints()
    async with (
        running_writer(database, hints=hints) as one,
        running_writer(database, hints=hints) as other,
    ):
        email = await submit(
            one, do.LogEmail(gmail_message_id="g-1", from_email="a@example.org", status="sent")
        )
        again = await submit(one, do.UpdateEmail(email_id=email.reply["id"], status="classified"))
        assert again.position

        def known() -> bool:
            return email.reply["id"] in other.squad.tables["email_logs"]

        await eventually(known)
        assert other.squad.email_with("g-1") == email.reply["id"]
        assert not other.squad.absent


async def test_reopened_email_is_loaded_when_every_batch_is_decided_under_the_lock(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database) as one, running_writer(database) as other:
        keeper = other._appender.keeper
        lock_log = keeper.lock_log

        async def lock_as_if_others_had_written(connection: Connection) -> bool:
            await lock_log(connection)
            return True

        monkeypatch.setattr(keeper, "lock_log", lock_as_if_others_had_written)
        other._appender.contended = True
        stop = asyncio.Event()

        async def keep_writing() -> None:
            while not stop.is_set():
                await submit(other, message("and so on"))

        writing = [asyncio.create_task(keep_writing()) for _ in range(20)]
        try:
            email = await submit(
                one, do.LogEmail(gmail_message_id="g-1", from_email="a@example.org", status="sent")
            )
            email_id = email.reply["id"]
            await submit(one, do.UpdateEmail(email_id=email_id, status="classified"))
            await eventually(lambda: email_id in other.squad.tables["email_logs"])
        finally:
            stop.set()
            await asyncio.gather(*writing)


async def test_state_before_the_first_event_is_empty(connection: Connection) -> None:
    assert contents(await state_at(connection, 0)) == contents(Squad())
    then = await squad_at(connection, None)
    assert (contents(then.squad), then.moment) == (contents(Squad()), None)
    await LogWriter(connection).append(message_sent("hello"), type="no_such_type")
    assert contents(await state_at(connection, 0)) == contents(Squad())


async def test_position_or_time_beyond_the_log_is_rejected(database: str, connection: Connection) -> None:
    async with running_writer(database) as writer:
        head = writer.squad.head.position
    now = await log.clock(connection)
    beyond: tuple[int | datetime, ...] = (head + 1, 2**62, now + timedelta(days=1))
    for at in beyond:
        with pytest.raises(BeyondTheLog):
            await squad_at(connection, at)
    # Clocks differ a little: a time slightly ahead is not beyond the log.
    for place in (head, now + timedelta(seconds=20), None):
        assert (await squad_at(connection, place)).squad.head.position == head


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 9), (14, 14), (11, 20), (16, 25), (31, 34)])
async def test_first_missing_position_is_reported(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, first: int, last: int
) -> None:
    monkeypatch.setattr(folding, "PAGE_EVENTS", 5)
    await LogWriter(connection).append(
        agent_registered("alice"), *(message_sent(f"the {n}th") for n in range(2, 36))
    )
    async with triggers_disabled(connection):
        await connection.execute("DELETE FROM events WHERE position BETWEEN %s AND %s", (first, last))
    with pytest.raises(StoreUnavailable, match=f"position {first} is missing"):
        await state_at(connection, 35)
    assert (await state_at(connection, first - 1)).head.position == first - 1


async def test_state_at_a_time_is_after_the_last_event_recorded_by_then(
    database: str, connection: Connection
) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=22).submit_commands(writer, 60)
    events = await whole_log(connection)
    microsecond = timedelta(microseconds=1)
    for recorded in events[:: len(events) // 12]:
        moment = recorded.recorded_at
        same = [event.position for event in events if event.recorded_at <= moment]
        before = [event.position for event in events if event.recorded_at < moment]
        then = await squad_at(connection, moment)
        assert (then.squad.head.position, then.moment) == (same[-1], moment)
        earlier = await squad_at(connection, moment - microsecond)
        assert earlier.squad.head.position == (before[-1] if before else 0)


async def test_claim_is_active_as_long_as_its_expiry_is_not_recorded(
    database: str, connection: Connection
) -> None:
    async with running_writer(database) as writer:
        claim = do.StartOperation(agent="ann", action="work", resources={"emailId": "e"}, ttl_seconds=0.05)
        outcome = await submit(writer, claim)
        assert outcome.position
    recorded = await lookup.read_one(connection, outcome.position)
    assert recorded
    # No process was left to record its expiry.
    then = await squad_at(connection, recorded.recorded_at + timedelta(seconds=0.06))
    assert outcome.reply["id"] in then.squad.tables["operations"]


@pytest.mark.usefixtures("frequent_snapshots")
async def test_read_only_session_reads_past_state_and_stores_no_snapshots(
    database: str, connection: Connection
) -> None:
    await _fill_log(connection)
    await connection.execute("SET default_transaction_read_only = on")
    assert await snapshot_writer(connection) is None
    squad = await state_at(connection, 3_000, await snapshot_writer(connection))
    assert squad.head.position == 3_000
    async with connected(database) as writable:
        assert await snapshots.positions(writable) == []


@pytest.mark.usefixtures("frequent_snapshots")
async def test_fold_that_timed_out_resumes_where_it_stopped(connection: Connection) -> None:
    await _fill_log(connection)
    keep = await snapshot_writer(connection)
    for reached in (50, 100, 150):
        with pytest.raises(TookTooLong, match=f"up to position {reached} of 200"):
            await state_at(connection, 200, keep, deadline=monotonic())
        assert (await snapshots.positions(connection))[-1] == reached
    assert (await state_at(connection, 200, keep, deadline=monotonic())).head.position == 200


async def test_state_after_a_missing_event_is_not_returned(database: str, connection: Connection) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=23).submit_commands(writer, 20)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
    await connection.execute("DELETE FROM events WHERE position = 7")
    assert (await state_at(connection, 6)).head.position == 6
    with pytest.raises(StoreUnavailable, match="position 7 is missing"):
        await state_at(connection, 10)


async def test_event_of_unknown_type_is_not_skipped(connection: Connection) -> None:
    log_writer = LogWriter(connection)
    await log_writer.append(message_sent("hello"), type="no_such_type")
    with pytest.raises(LogNotUnderstood):
        await state_at(connection, 1)


@pytest.mark.usefixtures("frequent_snapshots")
async def test_well_formed_but_wrong_snapshot_is_found_by_folding(connection: Connection) -> None:
    await _fill_log(connection)
    await state_at(connection, 2_000, await snapshot_writer(connection))
    assert await check_snapshots(connection) == []
    taken = await snapshots.positions(connection)
    for position, defect in zip(taken, ("row", "version"), strict=False):
        squad = await state_at(connection, position)
        if defect == "row":
            [agent, *_] = squad.tables["squad_agents"].values()
            squad.tables["squad_agents"][agent.name] = agent.replaced(priority=agent.priority + 1)
        else:
            squad.versions["policy"] += 1
        await snapshots.store(connection, squad, position)
    one, other = await check_snapshots(connection)
    assert one == (taken[0], f"squad_agents differs from the fold at {agent.name!r}")
    assert other == (taken[1], "versions of streams differs from the fold at 'policy'")


async def test_snapshot_check_reports_progress_and_a_snapshot_beyond_the_log(
    connection: Connection,
) -> None:
    await _fill_log(connection)
    await snapshots.store(connection, await state_at(connection, 2_500), 2_500)
    beyond = await state_at(connection, 10)
    beyond.head = structs.replace(beyond.head, position=1_000_000)
    await snapshots.store(connection, beyond, 1_000_000)
    progress: list[int] = []
    [fault] = await check_snapshots(connection, progress.append)
    assert fault.position == 1_000_000
    assert progress == sorted(progress)
    assert {800, 2_500} <= set(progress)
