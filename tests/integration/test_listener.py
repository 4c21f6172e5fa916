"""The listener receives notifications, knows whether it does, and reconnects when it does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from eventstore import listener as listening
from eventstore.listener import Hints, Listener, wait_for_hint
from eventstore.queries import one_value
from tests.support.components import connected, running, running_listener, terminate_backends
from tests.support.log import LogWriter, message_sent
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection


@pytest.fixture
def frequent_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats are sent at short intervals and time out soon."""
    monkeypatch.setattr(listening, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(listening, "HEARTBEAT_TIMEOUT_SECONDS", 0.3)


async def _notify(connection: Connection, channel: str, payload: str) -> None:
    await connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))


async def test_listener_learns_of_events_and_their_position(database: str) -> None:
    async with running_listener(database) as listener, connected(database) as connection:
        waiter = listener.events.waiter()
        await LogWriter(connection).append(message_sent("one"), message_sent("two"))
        await asyncio.wait_for(waiter.wait(), 1)
        assert listener.events.position == 2


async def test_projections_are_notified_separately_from_events(database: str) -> None:
    async with running_listener(database) as listener, connected(database) as connection:
        events, projections = listener.events.waiter(), listener.projections.waiter()
        await _notify(connection, "squad.projections", "5")
        await asyncio.wait_for(projections.wait(), 1)
        assert listener.projections.position == 5
        assert not events.is_set()


@pytest.mark.parametrize("payload", ["", "no number", "-1", "1.5", "9" * 30, "9" * 5_000, "١٢"])
async def test_notification_with_a_malformed_payload_is_a_hint_without_a_position(
    database: str, payload: str
) -> None:
    async with running_listener(database) as listener, connected(database) as connection:
        waiter = listener.events.waiter()
        await _notify(connection, "squad.events", payload)
        await asyncio.wait_for(waiter.wait(), 1)
        assert listener.events.position == 0
        assert listener.hearing


@pytest.mark.usefixtures("frequent_heartbeats")
async def test_heartbeats_are_repeated(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It waits for a heartbeat until that is back, not until the timeout.
    monkeypatch.setattr(listening, "HEARTBEAT_TIMEOUT_SECONDS", 60.0)
    async with running_listener(database) as listener:
        await eventually(lambda: listener.heartbeats >= 5)
        assert listener.reconnects == 0


@pytest.mark.usefixtures("frequent_heartbeats")
async def test_no_hint_is_lost_between_heartbeats(database: str) -> None:
    async with running_listener(database) as listener, connected(database) as connection:
        for position in range(1, 51):
            waiter = listener.events.waiter()
            await _notify(connection, "squad.events", str(position))
            await asyncio.wait_for(waiter.wait(), 1)
            assert listener.events.position == position


async def test_reconnecting_wakes_all_waiters(database: str) -> None:
    async with running_listener(database) as listener, connected(database) as connection:
        events, projections = listener.events.waiter(), listener.projections.waiter()
        assert await terminate_backends(connection, "squad listener") == 1
        await asyncio.wait_for(asyncio.gather(events.wait(), projections.wait()), 2)
        await eventually(lambda: listener.hearing)
        assert listener.reconnects == 1


@pytest.mark.usefixtures("frequent_heartbeats")
async def test_connection_that_is_open_but_deaf_is_detected_and_replaced(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener(database, "squad")
    right_channel = listener._heartbeat_channel
    async with running(listener.run()), connected(database) as connection:
        await eventually(lambda: listener.hearing)
        # As behind a pooler in transaction mode: notifications are sent, and none come back.
        monkeypatch.setattr(listener, "_heartbeat_channel", f"{right_channel}.elsewhere")
        await eventually(lambda: listener.reconnects > 0)
        assert (listener.problem or "").endswith("the listener's own heartbeat did not come back")
        monkeypatch.undo()
        await eventually(lambda: listener.hearing)
        await LogWriter(connection).append(message_sent("heard again"))
        await eventually(lambda: listener.events.position == 1)


async def test_listener_keeps_reconnecting_while_there_is_no_server(database: str) -> None:
    listener = Listener(f"{database} host=127.0.0.1 port=1", "squad")
    async with running(listener.run()):
        await eventually(lambda: listener.reconnects >= 3)
        assert not listener.hearing


async def test_listener_backs_off_longer_after_each_failure_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = Listener("", "squad")
    waits: list[float] = []
    durations = iter([0.0] * 9 + [100.0] + [0.0] * 2)
    now = 0.0

    async def listen() -> None:
        nonlocal now
        now += next(durations)
        raise OSError("gone")

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 12:
            raise asyncio.CancelledError

    monkeypatch.setattr(listener, "_listen", listen)
    monkeypatch.setattr(listening, "monotonic", lambda: now)
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await listener.run()
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 0.05, 0.1, 0.2]
    assert (listener.problem, listener.hearing, listener.reconnects) == ("gone", False, 12)


async def test_hint_between_looking_and_waiting_is_not_missed() -> None:
    hints = Hints()
    waiter = hints.waiter()
    hints.wake(3)
    async with asyncio.timeout(1):
        await wait_for_hint(waiter, seconds=60)
    assert hints.position == 3
    assert not hints.waiter().is_set()


async def test_late_hint_does_not_set_the_position_back() -> None:
    hints = Hints()
    hints.wake(7)
    hints.wake(3)
    assert hints.position == 7


async def test_wait_ends_with_a_hint_and_not_before() -> None:
    hints = Hints()
    waiting = asyncio.create_task(wait_for_hint(hints.waiter(), seconds=60))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    hints.wake()
    await asyncio.wait_for(waiting, 1)


async def test_session_of_the_listener_has_an_idle_timeout(database: str) -> None:
    connection = await Listener(database, "squad")._connect("squad listener")
    async with connection:
        assert await one_value(connection, "SHOW idle_session_timeout") == "15s"


async def test_wait_ends_without_a_hint_after_its_timeout() -> None:
    async with asyncio.timeout(5):
        await wait_for_hint(Hints().waiter(), seconds=0.01)
