"""Looking for what is over takes as long as what has changed, or is over, however many rows there are."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import pytest

from service.memory import deadlines
from service.memory.deadlines import NEVER, Deadlines
from tests.unit.support import moment

MANY = 5_000


class Thing(NamedTuple):
    """Something that began at some time and ends at another."""

    name: str
    began: int
    ends: datetime | None


class Things:
    """Many of them, of which one ends each second; those that began last end first."""

    def __init__(self, many: int = MANY) -> None:
        self.rows = {
            name: Thing(name, began, moment(many - began))
            for name, began in ((f"thing {number}", number) for number in range(many))
        }
        self.asked = 0
        """How often the moment of one was asked for."""
        self.deadlines = Deadlines(self.rows, self.moment_of, lambda row: row.began)

    def moment_of(self, thing: Thing) -> datetime | None:
        self.asked += 1
        return thing.ends

    def put(self, name: str, ends: float | None) -> None:
        began = self.rows[name].began if name in self.rows else len(self.rows)
        self.rows[name] = Thing(name, began, None if ends is None else moment(ends))
        self.deadlines.change([name])

    def put_last(self, name: str) -> None:
        self.rows[name] = self.rows[name]._replace(began=len(self.rows))
        self.deadlines.change([name])

    def drop(self, *names: str) -> None:
        for name in names:
            del self.rows[name]
        self.deadlines.change(names)

    def expired(self, seconds: float) -> list[str]:
        return [row.name for row in self.deadlines.expired(moment(seconds))]


def test_what_is_neither_changed_nor_over_is_not_looked_at_again() -> None:
    things = Things()
    assert things.expired(0) == []
    things.asked = 0
    for seconds in range(1, 101):
        over = things.expired(seconds)
        assert over == [f"thing {MANY - seconds}"]
        things.drop(*over)
        assert things.deadlines.next(moment(seconds)) == things.deadlines.first() == moment(seconds + 1)
    assert things.asked < 2_000


def test_the_first_is_known_where_nobody_has_looked_yet() -> None:
    things = Things()
    assert things.deadlines.first() == moment(1)
    things.asked = 0
    for seconds in range(100):
        things.put("thing 0", 10_000 + seconds)
        assert things.deadlines.first() == moment(1)
    assert things.asked < 1_000
    assert things.expired(2) == [f"thing {MANY - 2}", f"thing {MANY - 1}"]


def test_what_is_over_is_told_in_its_order_until_it_is_dealt_with() -> None:
    things = Things(10)
    things.expired(0)
    assert things.expired(3) == things.expired(3) == ["thing 7", "thing 8", "thing 9"]
    assert moment(1) <= things.deadlines.first() <= moment(3)
    things.drop("thing 8")
    assert things.expired(4) == ["thing 6", "thing 7", "thing 9"]


@pytest.mark.parametrize("checked_at", [[0], []], ids=["after others", "at the first look"])
def test_very_many_may_be_over_at_once(checked_at: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_MANY", 10)
    things = Things()
    for seconds in checked_at:
        assert things.expired(seconds) == []
    assert things.expired(MANY - 1) == [f"thing {number}" for number in range(1, MANY)]
    assert things.deadlines.next(moment(MANY - 1)) == moment(MANY)
    assert things.expired(MANY)[0] == "thing 0"


def test_one_that_was_put_off_is_over_later_and_told_once() -> None:
    things = Things(3)
    assert things.expired(1) == ["thing 2"]
    things.put("thing 2", 10)
    things.put("thing 2", 10)
    assert things.expired(9) == ["thing 0", "thing 1"]
    assert things.expired(10) == ["thing 0", "thing 1", "thing 2"]
    things.put("thing 1", None)
    assert things.expired(10) == ["thing 0", "thing 2"]


def test_one_that_has_another_place_by_now_is_told_there_alone() -> None:
    things = Things(5)
    assert things.expired(5) == ["thing 0", "thing 1", "thing 2", "thing 3", "thing 4"]
    things.put_last("thing 0")
    things.put_last("thing 0")
    assert things.expired(5) == ["thing 1", "thing 2", "thing 3", "thing 4", "thing 0"]


def test_what_is_new_comes_in_between() -> None:
    things = Things(3)
    assert things.deadlines.first() == moment(1)
    assert things.deadlines.next(moment(1)) == moment(2)
    things.put("new", 1.5)
    assert things.deadlines.next(moment(1)) == moment(1.5)
    assert things.expired(1.5) == ["thing 2", "new"]


def test_nothing_is_over_too_soon_where_a_clock_that_was_ahead_is_put_right() -> None:
    things = Things(3)
    assert len(things.expired(3)) == 3
    assert things.expired(1) == ["thing 2"]
    assert things.deadlines.next(moment(1)) == moment(2)
    things.put("new", 1.5)
    assert things.deadlines.next(moment(1)) == moment(1.5)


def test_what_has_another_moment_by_now_is_not_next_where_a_clock_is_put_right() -> None:
    things = Things(3)
    assert len(things.expired(3)) == 3
    things.put("thing 1", 9)
    assert things.deadlines.next(moment(1)) == moment(3)


def test_there_may_be_none() -> None:
    things = Things(0)
    assert things.deadlines.first() == things.deadlines.next(moment(0)) == NEVER
    assert things.expired(0) == []
    things.put("one", None)
    assert things.deadlines.first() == NEVER


def test_what_the_moments_were_before_is_forgotten() -> None:
    things = Things(10)
    things.expired(0)
    for seconds in range(1, 1_000):
        things.put("thing 5", 1_000 + seconds)
        assert things.expired(0) == []
    assert things.deadlines._pending is not None
    assert len(things.deadlines._pending) < 200
    assert things.expired(1_998) == [f"thing {number}" for number in range(10) if number != 5]
    assert len(things.expired(1_999)) == 10
