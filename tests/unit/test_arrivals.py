"""Whoever waits for a message to an agent is woken by those to it and to all, and by no others."""

from __future__ import annotations

from contextlib import AsyncExitStack

import orjson
import pytest

from eventstore.errors import StoreUnavailable
from eventstore.recorded import Recorded
from service import arrivals as arrivals_
from service.arrivals import MAX_CONCURRENT_READS, Arrivals
from tests.unit.stories import START


def _message(position: int, to_agent: str | None, type_: str = "message_sent") -> Recorded:
    text = orjson.dumps({"agent": "ada", "to_agent": to_agent}).decode()
    return Recorded(position, "id", "agent-ada", 1, type_, 1, text, "actor", None, "c", None, START, b"")


@pytest.mark.parametrize(("to_agent", "woken"), [("bob", True), (None, True), ("carol", False)])
def test_messages_wake_those_that_wait_for_their_recipient(to_agent: str | None, *, woken: bool) -> None:
    arrivals = Arrivals()
    with arrivals.watch("bob") as arrived:
        waiter = arrived.waiter()
        arrivals.observe([_message(7, to_agent)])
        assert waiter.is_set() is woken
        assert arrived.position == (7 if woken else 0)


def test_other_events_wake_nobody() -> None:
    arrivals = Arrivals()
    with arrivals.watch("bob") as arrived:
        waiter = arrived.waiter()
        arrivals.observe([_message(7, "bob", "task_created")])
        assert not waiter.is_set()


def test_latest_of_several_messages_is_the_one_to_read_up_to() -> None:
    arrivals = Arrivals()
    with arrivals.watch("bob") as arrived:
        arrivals.observe([_message(7, "bob"), _message(8, None), _message(9, "carol")])
        assert arrived.position == 8


def test_agent_is_watched_until_the_last_that_waits_has_left() -> None:
    arrivals = Arrivals()
    with arrivals.watch("bob") as first:
        with arrivals.watch("bob") as second:
            assert second is first
        waiter = first.waiter()
        arrivals.observe([_message(1, "bob")])
        assert waiter.is_set()
    with arrivals.watch("bob") as later:
        assert later.position == 0


def test_replaced_log_wakes_all_and_forgets_positions_of_the_old_one() -> None:
    arrivals = Arrivals()
    with arrivals.watch("bob") as arrived:
        arrivals.observe([_message(7, "bob")])
        waiter = arrived.waiter()
        arrivals.reset()
        assert waiter.is_set()
        assert arrived.position == 0


async def test_reader_whose_turn_does_not_come_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals_, "MIN_TURN_SECONDS", 0.0)
    arrivals = Arrivals()
    async with AsyncExitStack() as turns:
        for _ in range(MAX_CONCURRENT_READS):
            await turns.enter_async_context(arrivals.turn(1))
        with pytest.raises(StoreUnavailable):
            await turns.enter_async_context(arrivals.turn(0.01))
    async with arrivals.turn(1):
        pass
