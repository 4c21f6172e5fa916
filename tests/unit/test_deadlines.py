"""Deadlines: a check costs as much as there are changed or expired rows, however many rows there are."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import pytest

from service.memory import deadlines
from service.memory.deadlines import NEVER, Deadlines
from tests.unit.stories import moment

MANY = 5_000


class Thing(NamedTuple):
    """A row that began at some time and ends at another."""

    name: str
    began: int
    ends: datetime | None


class Things:
    """Many rows, of which one ends each second; those that began last end first."""

    def __init__(self, many: int = MANY) -> None:
        self.rows = {
            name: Thing(name, began, moment(many - began))
            for name, began in ((f"thing {number}", number) for number in range(many))
        }
        self.reads = 0
        """How often the deadline of a row was read."""
        self.deadlines = Deadlines(self.rows, self.moment_of, lambda row: row.began)

    def moment_of(self, thing: Thing) -> datetime | None:
        self.reads += 1
        return thing.ends

    def set_deadline(self, name: str, ends: float | None) -> None:
        began = self.rows[name].began if name in self.rows else len(self.rows)
        self.rows[name] = Thing(name, began, None if ends is None else moment(ends))
        self.deadlines.change([name])

    def move_to_end(self, name: str) -> None:
        self.rows[name] = self.rows[name]._replace(began=len(self.rows))
        self.deadlines.change([name])

    def remove(self, *names: str) -> None:
        for name in names:
            del self.rows[name]
        self.deadlines.change(names)

    def expired(self, seconds: float) -> list[str]:
        return [row.name for row in self.deadlines.expired(moment(seconds))]


def test_unchanged_rows_that_have_not_expired_are_not_looked_at_again() -> None:
    things = Things()
    assert things.expired(0) == []
    things.reads = 0
    for seconds in range(1, 101):
        expired = things.expired(seconds)
        assert expired == [f"thing {MANY - seconds}"]
        things.remove(*expired)
        assert things.deadlines.next(moment(seconds)) == things.deadlines.first() == moment(seconds + 1)
    assert things.reads < 2_000


def test_first_deadline_is_known_before_the_first_check() -> None:
    things = Things()
    assert things.deadlines.first() == moment(1)
    things.reads = 0
    for seconds in range(100):
        things.set_deadline("thing 0", 10_000 + seconds)
        assert things.deadlines.first() == moment(1)
    assert things.reads < 1_000
    assert things.expired(2) == [f"thing {MANY - 2}", f"thing {MANY - 1}"]


def test_expired_rows_are_returned_in_order_until_they_are_removed() -> None:
    things = Things(10)
    things.expired(0)
    assert things.expired(3) == things.expired(3) == ["thing 7", "thing 8", "thing 9"]
    assert moment(1) <= things.deadlines.first() <= moment(3)
    things.remove("thing 8")
    assert things.expired(4) == ["thing 6", "thing 7", "thing 9"]


@pytest.mark.parametrize("checked_at", [[0], []], ids=["after an earlier check", "at the first check"])
def test_very_many_rows_may_expire_at_once(checked_at: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_MANY", 10)
    things = Things()
    for seconds in checked_at:
        assert things.expired(seconds) == []
    assert things.expired(MANY - 1) == [f"thing {number}" for number in range(1, MANY)]
    assert things.deadlines.next(moment(MANY - 1)) == moment(MANY)
    assert things.expired(MANY)[0] == "thing 0"


def test_postponed_row_expires_later_and_is_returned_once() -> None:
    things = Things(3)
    assert things.expired(1) == ["thing 2"]
    things.set_deadline("thing 2", 10)
    things.set_deadline("thing 2", 10)
    assert things.expired(9) == ["thing 0", "thing 1"]
    assert things.expired(10) == ["thing 0", "thing 1", "thing 2"]
    things.set_deadline("thing 1", None)
    assert things.expired(10) == ["thing 0", "thing 2"]


def test_moved_row_is_returned_only_at_its_new_place() -> None:
    things = Things(5)
    assert things.expired(5) == ["thing 0", "thing 1", "thing 2", "thing 3", "thing 4"]
    things.move_to_end("thing 0")
    things.move_to_end("thing 0")
    assert things.expired(5) == ["thing 1", "thing 2", "thing 3", "thing 4", "thing 0"]


def test_new_row_expires_in_its_turn() -> None:
    things = Things(3)
    assert things.deadlines.first() == moment(1)
    assert things.deadlines.next(moment(1)) == moment(2)
    things.set_deadline("new", 1.5)
    assert things.deadlines.next(moment(1)) == moment(1.5)
    assert things.expired(1.5) == ["thing 2", "new"]


def test_no_row_expires_early_after_the_clock_is_set_back() -> None:
    things = Things(3)
    assert len(things.expired(3)) == 3
    assert things.expired(1) == ["thing 2"]
    assert things.deadlines.next(moment(1)) == moment(2)
    things.set_deadline("new", 1.5)
    assert things.deadlines.next(moment(1)) == moment(1.5)


def test_postponed_row_is_not_next_after_the_clock_is_set_back() -> None:
    things = Things(3)
    assert len(things.expired(3)) == 3
    things.set_deadline("thing 1", 9)
    assert things.deadlines.next(moment(1)) == moment(3)


def test_there_may_be_no_deadline() -> None:
    things = Things(0)
    assert things.deadlines.first() == things.deadlines.next(moment(0)) == NEVER
    assert things.expired(0) == []
    things.set_deadline("one", None)
    assert things.deadlines.first() == NEVER


def test_earlier_deadlines_of_a_row_are_forgotten() -> None:
    things = Things(10)
    things.expired(0)
    for seconds in range(1, 1_000):
        things.set_deadline("thing 5", 1_000 + seconds)
        assert things.expired(0) == []
    assert things.deadlines._pending is not None
    assert len(things.deadlines._pending) < 200
    assert things.expired(1_998) == [f"thing {number}" for number in range(10) if number != 5]
    assert len(things.expired(1_999)) == 10
