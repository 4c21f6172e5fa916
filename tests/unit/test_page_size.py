"""How many events a page should have, by how large those of the one before were."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from eventstore.page_size import INITIAL_EVENTS, MIN_EVENTS, PAGE_CHARACTERS, PageSizer
from eventstore.recorded import FoldInput

MOST = 5_000


def page(events: int, characters: int) -> list[FoldInput]:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        FoldInput(n + 1, "message_sent", 1, "x" * characters, "agent:a", None, moment)
        for n in range(events)
    ]


@pytest.mark.parametrize("maximum", [1, 7, INITIAL_EVENTS, MOST])
def test_it_begins_with_few(maximum: int) -> None:
    assert PageSizer(maximum).events == min(maximum, INITIAL_EVENTS)


def test_it_grows_to_the_most_where_events_are_small() -> None:
    page_sizer, asked = PageSizer(MOST), list[int]()
    for _ in range(8):
        asked.append(page_sizer.events)
        page_sizer.adapt(page(page_sizer.events, 200))
    assert asked == [100, 200, 400, 800, 1_600, 3_200, MOST, MOST]


@pytest.mark.parametrize("characters", [2_000, 20_000, 200_000])
def test_it_asks_for_as_many_as_fit(characters: int) -> None:
    page_sizer = PageSizer(MOST)
    for _ in range(6):
        page_sizer.adapt(page(20, characters))
    assert page_sizer.events == max(PAGE_CHARACTERS // characters, MIN_EVENTS)


def test_it_can_be_set_to_pages_of_another_size() -> None:
    page_sizer, asked = PageSizer(50, first=10, minimum=1, characters=6_000), list[int]()
    for characters in (100, 100, 100, 1_000_000, 2_000):
        asked.append(page_sizer.events)
        page_sizer.adapt(page(page_sizer.events, characters))
    assert [*asked, page_sizer.events] == [10, 20, 40, 50, 1, 2]


def test_it_forgets_large_ones_page_by_page() -> None:
    page_sizer = PageSizer(MOST)
    page_sizer.adapt(page(10, 1_000_000))
    assert page_sizer.events == MIN_EVENTS
    page_sizer.adapt(page(10, 100))
    assert page_sizer.events == 2 * MIN_EVENTS


def test_it_bewares_of_large_ones_that_are_yet_to_come() -> None:
    page_sizer = PageSizer(MOST)
    page_sizer.shrink_to_fit(page(5, 100))
    assert page_sizer.events == INITIAL_EVENTS
    page_sizer.shrink_to_fit(page(5, 1_000_000))
    page_sizer.shrink_to_fit(page(5, 100))
    assert page_sizer.events == MIN_EVENTS


@pytest.mark.parametrize("read", [[], page(3, 0)])
def test_it_can_learn_from_next_to_nothing(read: list[FoldInput]) -> None:
    page_sizer = PageSizer(MOST)
    page_sizer.adapt(read)
    assert page_sizer.events == 2 * INITIAL_EVENTS
