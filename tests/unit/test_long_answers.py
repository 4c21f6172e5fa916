"""Long answers are written as short ones are, and others have their turn meanwhile."""

from __future__ import annotations

import asyncio
from operator import itemgetter
from typing import Any

import pytest

from service.http import long_answers
from service.http.json import dumps
from service.http.long_answers import LongAnswers
from service.lazy_rows import FEW, by_name, listed

ROWS = 50 * FEW


_NAME = itemgetter("name")


def an_answer(rows: int, shown: list[int] | None = None) -> dict[str, Any]:
    def show(row: int) -> dict[str, int]:
        if shown is not None:
            shown.append(row)
        return {"row": row}

    every = range(rows)
    return {
        "list": listed(every, show),
        "inner": {
            "by_name": by_name(
                [{"name": f"“{row}”"} for row in every], itemgetter("name"), itemgetter("name")
            )
        },
        "empty": {},
        "none": listed([], show),
        "text": "ü",
    }


@pytest.fixture(autouse=True)
def slices_of_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_answers, "_SLICE_SECONDS", 0.0)


@pytest.mark.parametrize("rows", [0, 1, FEW, ROWS])
async def test_are_the_same_json_however_long_they_are(rows: int) -> None:
    assert await LongAnswers().serialize(lambda: an_answer(rows)) == dumps(an_answer(rows))


async def test_take_turns_with_everything_else() -> None:
    shown: list[int] = []
    writing = asyncio.create_task(LongAnswers().serialize(lambda: an_answer(ROWS, shown)))
    most, before = 0, 0
    while not writing.done():
        await asyncio.sleep(0)
        most, before = max(most, len(shown) - before), len(shown)
    assert len(shown) == ROWS
    assert most <= FEW


async def test_hold_others_up_no_more_where_there_are_several_of_them() -> None:
    answers, shown = LongAnswers(), list[int]()
    writing = asyncio.gather(*(answers.serialize(lambda: an_answer(ROWS, shown)) for _ in range(20)))
    most, before = 0, 0
    while not writing.done():
        await asyncio.sleep(0)
        most, before = max(most, len(shown) - before), len(shown)
    assert len(shown) == 20 * ROWS
    assert most <= FEW


async def test_short_ones_are_written_at_once() -> None:
    writing = asyncio.create_task(LongAnswers().serialize(lambda: an_answer(10)))
    await asyncio.sleep(0)
    assert writing.done()
    await writing
