"""Long answers are serialized to the same JSON as short ones, and yield to other tasks meanwhile."""

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


def make_answer(rows: int, rendered: list[int] | None = None) -> dict[str, Any]:
    def show(row: int) -> dict[str, int]:
        if rendered is not None:
            rendered.append(row)
        return {"row": row}

    numbers = range(rows)
    return {
        "list": listed(numbers, show),
        "inner": {
            "by_name": by_name(
                [{"name": f"“{row}”"} for row in numbers], itemgetter("name"), itemgetter("name")
            )
        },
        "empty": {},
        "none": listed([], show),
        "text": "ü",
    }


@pytest.fixture(autouse=True)
def _yield_every_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_answers, "_SLICE_SECONDS", 0.0)


@pytest.mark.parametrize("rows", [0, 1, FEW, ROWS])
async def test_answer_of_any_length_is_serialized_to_the_same_json(rows: int) -> None:
    assert await LongAnswers().serialize(lambda: make_answer(rows)) == dumps(make_answer(rows))


async def test_long_answer_yields_to_other_tasks_every_few_rows() -> None:
    rendered: list[int] = []
    serializing = asyncio.create_task(LongAnswers().serialize(lambda: make_answer(ROWS, rendered)))
    largest_step, before = 0, 0
    while not serializing.done():
        await asyncio.sleep(0)
        largest_step, before = max(largest_step, len(rendered) - before), len(rendered)
    assert len(rendered) == ROWS
    assert largest_step <= FEW


async def test_many_long_answers_delay_other_tasks_no_more_than_one() -> None:
    answers, rendered = LongAnswers(), list[int]()
    serializing = asyncio.gather(
        *(answers.serialize(lambda: make_answer(ROWS, rendered)) for _ in range(20))
    )
    largest_step, before = 0, 0
    while not serializing.done():
        await asyncio.sleep(0)
        largest_step, before = max(largest_step, len(rendered) - before), len(rendered)
    assert len(rendered) == 20 * ROWS
    assert largest_step <= FEW


async def test_short_answer_is_serialized_without_yielding() -> None:
    serializing = asyncio.create_task(LongAnswers().serialize(lambda: make_answer(10)))
    await asyncio.sleep(0)
    assert serializing.done()
    await serializing
