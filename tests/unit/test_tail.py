"""The latest events in memory: revealed once, and never again what was forgotten since."""

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


class Revealing:
    """Reveals with what keys there are, as slowly as it is told to."""

    def __init__(self) -> None:
        self.secrets = {KEY.id: KEY.secret}
        self.pages: list[Sequence[Recorded]] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def __call__(self, page: Sequence[Recorded]) -> list[Recorded]:
        shown = [sealing.reveal_event(recorded, self.secrets) for recorded in page]
        self.pages.append(page)
        await self.may_go_on.wait()
        return shown


def at(position: int, row: Recorded) -> Recorded:
    return row._replace(position=position)


@pytest.fixture
def revealing() -> Revealing:
    return Revealing()


@pytest.fixture
def tail(revealing: Revealing) -> Tail:
    return Tail(revealing)


async def test_what_is_in_plain_is_given_as_it_came(tail: Tail, revealing: Revealing) -> None:
    rows = [at(number, plain(LETTER)) for number in range(1, 6)]
    tail.extend(rows)
    assert await after(tail, 0, 3) == rows[:3]
    assert await after(tail, 3, 100) == rows[3:]
    assert await after(tail, 5, 100) == []
    assert revealing.pages == []


async def test_what_is_sealed_is_revealed_once_for_all(tail: Tail, revealing: Revealing) -> None:
    tail.extend([at(1, sealed(LETTER)), at(2, plain(ANSWER)), at(3, sealed(LETTER))])
    shown = [at(1, plain(LETTER)), at(2, plain(ANSWER)), at(3, plain(LETTER))]
    assert await after(tail, 0, 2) == shown[:2]
    assert await asyncio.gather(*(after(tail, 0, 9) for _ in range(3))) == [shown] * 3
    revealing.pages.clear()
    assert await after(tail, 0, 9) == shown
    assert revealing.pages == []


async def test_what_came_before_a_forgetting_is_let_go(tail: Tail) -> None:
    tail.extend([at(1, plain(LETTER)), at(2, plain(ANSWER))])
    tail.extend([at(3, plain(LETTER)), at(4, plain(FORGOTTEN)), at(5, plain(ANSWER))])
    assert tail.forgotten == 1
    assert await after(tail, 0, 9) is None
    assert await after(tail, 2, 9) is None
    assert await after(tail, 3, 9) == [at(4, plain(FORGOTTEN)), at(5, plain(ANSWER))]


async def test_what_is_forgotten_while_it_is_revealed_is_not_shown(
    tail: Tail, revealing: Revealing
) -> None:
    tail.extend([at(1, sealed(LETTER))])
    revealing.may_go_on.clear()
    reading = asyncio.create_task(after(tail, 0, 9))
    await eventually(lambda: revealing.pages)
    tail.extend([at(2, plain(FORGOTTEN))])
    revealing.may_go_on.set()
    assert await reading is None
    assert await after(tail, 1, 9) == [at(2, plain(FORGOTTEN))]


async def test_what_was_cut_off_while_it_was_revealed_is_not_put_elsewhere(
    tail: Tail, revealing: Revealing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 2)
    tail.extend([at(1, sealed(LETTER))])
    revealing.may_go_on.clear()
    reading = asyncio.create_task(after(tail, 0, 9))
    await eventually(lambda: revealing.pages)
    tail.extend([at(number, plain(ANSWER)) for number in range(2, 8)])
    revealing.may_go_on.set()
    assert await reading is None
    assert await after(tail, 5, 9) == [at(6, plain(ANSWER)), at(7, plain(ANSWER))]


async def test_a_gap_lets_go_of_what_is_older(tail: Tail) -> None:
    tail.extend([at(1, plain(LETTER))])
    tail.extend([at(3, plain(ANSWER))])
    assert await after(tail, 0, 9) is None
    assert await after(tail, 2, 9) == [at(3, plain(ANSWER))]


async def test_what_is_replaced_while_it_is_revealed_is_not_shown(tail: Tail, revealing: Revealing) -> None:
    tail.extend([at(1, plain(ANSWER)), at(2, sealed(LETTER))])
    revealing.may_go_on.clear()
    reading = asyncio.create_task(after(tail, 1, 9))
    await eventually(lambda: revealing.pages)
    tail.reset()
    revealing.may_go_on.set()
    assert await reading is None
    tail.extend([at(2, plain(ANSWER))])
    assert await after(tail, 1, 9) == [at(2, plain(ANSWER))]
