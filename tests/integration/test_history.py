"""The squad as it was: at every position, by whatever way it is found, what was in memory then."""

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
from tests.support.forging import unguarded
from tests.support.log import LogWriter, joined, said, whole_log
from tests.support.parts import connected, message, running_writer, submit
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
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots lie closer together than they otherwise would."""
    monkeypatch.setattr(snapshots, "distance", lambda _: 100)
    monkeypatch.setattr(folding, "PAGE_EVENTS", 50)


class Reference:
    """The simplest fold there is, event by event: nothing ever leaves it until somebody asks."""

    def __init__(self, events: Sequence[Recorded]) -> None:
        self._events = events
        self._draft = Draft(Squad())

    def at(self, position: int) -> dict[str, Any]:
        """The squad at a position; those asked for must come in order."""
        for recorded in self._events[self._draft.head.position : position]:
            self._draft.fold(codec.decode(recorded), recorded)
        squad = Squad()
        squad.merge(self._draft)
        return contents(squad)


async def _lived(connection: Connection) -> dict[int, dict[str, Any]]:
    """Fills the log with a life of every kind of event; what was in memory after each batch of it."""
    chronicle = SimulatedSquad(seed=5, open_things=30)
    now = await log.clock(connection) - timedelta(days=1)
    page = chronicle.first(now)
    lived: dict[int, dict[str, Any]] = {}
    # What a batch of it holds depends on the hour: the day's budget may end while it goes on.
    while len(page) < EVENTS or len(lived) < POSITIONS // 5:
        lived[chronicle.squad.head.position] = contents(chronicle.squad.copy())
        now += timedelta(seconds=12)
        page += chronicle.more(now)
    await copy_in(connection, page)
    return lived


@pytest.mark.usefixtures("often")
async def test_at_a_thousand_positions_it_is_what_it_was(connection: Connection) -> None:
    lived = await _lived(connection)
    events = await whole_log(connection)
    random = Random(1)
    among_lived = random.sample(sorted(lived), POSITIONS // 5)
    positions = sorted({*among_lived, *random.sample(range(1, len(events) + 1), POSITIONS)})
    await state_at(connection, positions[-1], await snapshot_writer(connection))
    # Some vanish, some are spoilt: then it takes longer, and that is all.
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
        if position in lived:
            assert then == lived[position], position
    assert [fault.position for fault in await check_snapshots(connection)] == taken[9:11]


async def test_it_is_what_two_processes_had_in_memory(database: str, connection: Connection) -> None:
    lived: list[Squad] = []
    hints = Hints()
    async with (
        running_writer(database, hints=hints) as one,
        running_writer(database, hints=hints) as other,
    ):
        one.observers.append(lambda _: lived.append(one.squad.copy()))
        other.observers.append(lambda _: lived.append(other.squad.copy()))
        life = RandomHistory(seed=21)
        for turn in range(400):
            command = life.next()
            life.adjust(command, await submit((one, other)[turn % 2], command))
    # What was opened again by the other process has to be read before it can be shown.
    assert any(squad.absent for squad in lived)
    for squad in lived:
        await load_open(connection, squad)
        assert contents(await state_at(connection, squad.head.position)) == contents(squad)


async def test_what_another_process_opened_again_comes_into_memory(database: str) -> None:
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


async def test_it_comes_into_memory_also_where_every_batch_is_decided_holding_the_lock(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_writer(database) as one, running_writer(database) as other:
        keeper = other._appender.keeper
        lock_log = keeper.lock_log

        async def as_if_others_wrote(connection: Connection) -> bool:
            await lock_log(connection)
            return True

        monkeypatch.setattr(keeper, "lock_log", as_if_others_wrote)
        other._appender.contended = True
        ends = asyncio.Event()

        async def talk() -> None:
            while not ends.is_set():
                await submit(other, message("and so on"))

        talks = [asyncio.create_task(talk()) for _ in range(20)]
        try:
            email = await submit(
                one, do.LogEmail(gmail_message_id="g-1", from_email="a@example.org", status="sent")
            )
            email_id = email.reply["id"]
            await submit(one, do.UpdateEmail(email_id=email_id, status="classified"))
            await eventually(lambda: email_id in other.squad.tables["email_logs"])
        finally:
            ends.set()
            await asyncio.gather(*talks)


async def test_before_the_first_event_there_is_nothing(connection: Connection) -> None:
    assert contents(await state_at(connection, 0)) == contents(Squad())
    then = await squad_at(connection, None)
    assert (contents(then.squad), then.moment) == (contents(Squad()), None)
    await LogWriter(connection).append(said("hello"), type="no_such_type")
    assert contents(await state_at(connection, 0)) == contents(Squad())


async def test_beyond_the_end_there_is_nothing_to_tell(database: str, connection: Connection) -> None:
    async with running_writer(database) as writer:
        head = writer.squad.head.position
    now = await log.clock(connection)
    beyond: tuple[int | datetime, ...] = (head + 1, 2**62, now + timedelta(days=1))
    for at in beyond:
        with pytest.raises(BeyondTheLog):
            await squad_at(connection, at)
    # Clocks differ a little, and now is not the future.
    for place in (head, now + timedelta(seconds=20), None):
        assert (await squad_at(connection, place)).squad.head.position == head


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 9), (14, 14), (11, 20), (16, 25), (31, 34)])
async def test_what_is_missing_on_the_way_is_named(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, first: int, last: int
) -> None:
    monkeypatch.setattr(folding, "PAGE_EVENTS", 5)
    await LogWriter(connection).append(joined("alice"), *(said(f"the {n}th") for n in range(2, 36)))
    async with unguarded(connection):
        await connection.execute("DELETE FROM events WHERE position BETWEEN %s AND %s", (first, last))
    with pytest.raises(StoreUnavailable, match=f"position {first} is missing"):
        await state_at(connection, 35)
    assert (await state_at(connection, first - 1)).head.position == first - 1


async def test_a_moment_is_after_the_last_event_at_or_before_it(
    database: str, connection: Connection
) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=22).live(writer, 60)
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


async def test_what_the_clock_has_not_recorded_yet_is_as_the_log_has_it(
    database: str, connection: Connection
) -> None:
    async with running_writer(database) as writer:
        claim = do.StartOperation(agent="ann", action="work", resources={"emailId": "e"}, ttl_seconds=0.05)
        outcome = await submit(writer, claim)
        assert outcome.position
    recorded = await lookup.read_one(connection, outcome.position)
    assert recorded
    # Nobody lived to see it expire.
    then = await squad_at(connection, recorded.recorded_at + timedelta(seconds=0.06))
    assert outcome.reply["id"] in then.squad.tables["operations"]


@pytest.mark.usefixtures("often")
async def test_a_session_that_may_only_read_looks_back_all_the_same(
    database: str, connection: Connection
) -> None:
    await _lived(connection)
    await connection.execute("SET default_transaction_read_only = on")
    assert await snapshot_writer(connection) is None
    squad = await state_at(connection, 3_000, await snapshot_writer(connection))
    assert squad.head.position == 3_000
    async with connected(database) as writable:
        assert await snapshots.positions(writable) == []


@pytest.mark.usefixtures("often")
async def test_what_takes_too_long_goes_on_from_there_the_next_time(connection: Connection) -> None:
    await _lived(connection)
    keep = await snapshot_writer(connection)
    for reached in (50, 100, 150):
        with pytest.raises(TookTooLong, match=f"up to position {reached} of 200"):
            await state_at(connection, 200, keep, deadline=monotonic())
        assert (await snapshots.positions(connection))[-1] == reached
    assert (await state_at(connection, 200, keep, deadline=monotonic())).head.position == 200


async def test_a_log_with_a_hole_is_not_told_as_if_it_were_whole(
    database: str, connection: Connection
) -> None:
    async with running_writer(database) as writer:
        await RandomHistory(seed=23).live(writer, 20)
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("ALTER TABLE events DISABLE TRIGGER ALL")
    await connection.execute("DELETE FROM events WHERE position = 7")
    assert (await state_at(connection, 6)).head.position == 6
    with pytest.raises(StoreUnavailable, match="position 7 is missing"):
        await state_at(connection, 10)


async def test_an_event_from_newer_code_is_not_passed_over(connection: Connection) -> None:
    scribe = LogWriter(connection)
    await scribe.append(said("hello"), type="no_such_type")
    with pytest.raises(LogNotUnderstood):
        await state_at(connection, 1)


@pytest.mark.usefixtures("often")
async def test_a_snapshot_that_lies_well_is_found_by_folding(connection: Connection) -> None:
    await _lived(connection)
    await state_at(connection, 2_000, await snapshot_writer(connection))
    assert await check_snapshots(connection) == []
    taken = await snapshots.positions(connection)
    for position, lie in zip(taken, ("row", "version"), strict=False):
        squad = await state_at(connection, position)
        if lie == "row":
            [agent, *_] = squad.tables["squad_agents"].values()
            squad.tables["squad_agents"][agent.name] = agent.replaced(priority=agent.priority + 1)
        else:
            squad.versions["policy"] += 1
        await snapshots.store(connection, squad, position)
    one, other = await check_snapshots(connection)
    assert one == (taken[0], f"squad_agents differs from the fold at {agent.name!r}")
    assert other == (taken[1], "versions of streams differs from the fold at 'policy'")


async def test_the_check_tells_how_far_it_is_and_what_lies_beyond_the_log(
    connection: Connection,
) -> None:
    await _lived(connection)
    await snapshots.store(connection, await state_at(connection, 2_500), 2_500)
    beyond = await state_at(connection, 10)
    beyond.head = structs.replace(beyond.head, position=1_000_000)
    await snapshots.store(connection, beyond, 1_000_000)
    told: list[int] = []
    [fault] = await check_snapshots(connection, told.append)
    assert fault.position == 1_000_000
    assert told == sorted(told)
    assert {800, 2_500} <= set(told)
