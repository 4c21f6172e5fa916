"""The latest events in memory: revealed once, and dropped when somebody is forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from eventstore import sealing
from eventstore.events import SubjectForgotten
from service import tail as module
from service.tail import Tail
from tests.support.wait import eventually
from tests.unit.tails import after
from tests.unit.test_sealing import ANSWER, KEY, LETTER, plain, sealed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded

FORGOTTEN = SubjectForgotten(key_id=KEY.id, emails=[], messages=[], in_plain=0)


class FakeReveal:
    """Reveals events with its keys, and returns them once the test allows it."""

    def __init__(self) -> None:
        self.secrets = {KEY.id: KEY.secret}
        self.pages: list[Sequence[Recorded]] = []
        self.may_return = asyncio.Event()
        self.may_return.set()

    async def __call__(self, page: Sequence[Recorded]) -> list[Recorded]:
        shown = [sealing.reveal_event(recorded, self.secrets) for recorded in page]
        self.pages.append(page)
        await self.may_return.wait()
        return shown


def at_position(position: int, row: Recorded) -> Recorded:
    return row._replace(position=position)


@pytest.fixture
def reveal() -> FakeReveal:
    return FakeReveal()


@pytest.fixture
def tail(reveal: FakeReveal) -> Tail:
    return Tail(reveal)


async def test_plain_events_are_returned_unchanged(tail: Tail, reveal: FakeReveal) -> None:
    rows = [at_position(number, plain(LETTER)) for number in range(1, 6)]
    tail.extend(rows)
    assert await after(tail, 0, 3) == rows[:3]
    assert await after(tail, 3, 100) == rows[3:]
    assert await after(tail, 5, 100) == []
    assert reveal.pages == []


async def test_sealed_events_are_revealed_once_for_all_readers(tail: Tail, reveal: FakeReveal) -> None:
    tail.extend(
        [at_position(1, sealed(LETTER)), at_position(2, plain(ANSWER)), at_position(3, sealed(LETTER))]
    )
    shown = [at_position(1, plain(LETTER)), at_position(2, plain(ANSWER)), at_position(3, plain(LETTER))]
    assert await after(tail, 0, 2) == shown[:2]
    assert await asyncio.gather(*(after(tail, 0, 9) for _ in range(3))) == [shown] * 3
    reveal.pages.clear()
    assert await after(tail, 0, 9) == shown
    assert reveal.pages == []


async def test_events_before_a_forgetting_are_dropped(tail: Tail) -> None:
    tail.extend([at_position(1, plain(LETTER)), at_position(2, plain(ANSWER))])
    tail.extend(
        [at_position(3, plain(LETTER)), at_position(4, plain(FORGOTTEN)), at_position(5, plain(ANSWER))]
    )
    assert tail.forgotten == 1
    assert await after(tail, 0, 9) is None
    assert await after(tail, 2, 9) is None
    assert await after(tail, 3, 9) == [at_position(4, plain(FORGOTTEN)), at_position(5, plain(ANSWER))]


async def test_events_forgotten_while_being_revealed_are_not_returned(
    tail: Tail, reveal: FakeReveal
) -> None:
    tail.extend([at_position(1, sealed(LETTER))])
    reveal.may_return.clear()
    reading = asyncio.create_task(after(tail, 0, 9))
    await eventually(lambda: reveal.pages)
    tail.extend([at_position(2, plain(FORGOTTEN))])
    reveal.may_return.set()
    assert await reading is None
    assert await after(tail, 1, 9) == [at_position(2, plain(FORGOTTEN))]


async def test_events_evicted_while_being_revealed_are_not_stored_elsewhere(
    tail: Tail, reveal: FakeReveal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 2)
    tail.extend([at_position(1, sealed(LETTER))])
    reveal.may_return.clear()
    reading = asyncio.create_task(after(tail, 0, 9))
    await eventually(lambda: reveal.pages)
    tail.extend([at_position(number, plain(ANSWER)) for number in range(2, 8)])
    reveal.may_return.set()
    assert await reading is None
    assert await after(tail, 5, 9) == [at_position(6, plain(ANSWER)), at_position(7, plain(ANSWER))]


async def test_gap_drops_the_events_before_it(tail: Tail) -> None:
    tail.extend([at_position(1, plain(LETTER))])
    tail.extend([at_position(3, plain(ANSWER))])
    assert await after(tail, 0, 9) is None
    assert await after(tail, 2, 9) == [at_position(3, plain(ANSWER))]


async def test_events_replaced_while_being_revealed_are_not_returned(
    tail: Tail, reveal: FakeReveal
) -> None:
    tail.extend([at_position(1, plain(ANSWER)), at_position(2, sealed(LETTER))])
    reveal.may_return.clear()
    reading = asyncio.create_task(after(tail, 1, 9))
    await eventually(lambda: reveal.pages)
    tail.reset()
    reveal.may_return.set()
    assert await reading is None
    tail.extend([at_position(2, plain(ANSWER))])
    assert await after(tail, 1, 9) == [at_position(2, plain(ANSWER))]
