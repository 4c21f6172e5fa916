"""How many events the next page should have, given the size of the events in the previous one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from eventstore.page_size import INITIAL_EVENTS, MIN_EVENTS, PAGE_CHARACTERS, PageSizer
from eventstore.recorded import FoldInput

MAXIMUM = 5_000


def page_of(events: int, characters: int) -> list[FoldInput]:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        FoldInput(n + 1, "message_sent", 1, "x" * characters, "agent:a", None, moment)
        for n in range(events)
    ]


@pytest.mark.parametrize("maximum", [1, 7, INITIAL_EVENTS, MAXIMUM])
def test_first_page_is_small(maximum: int) -> None:
    assert PageSizer(maximum).events == min(maximum, INITIAL_EVENTS)


def test_page_doubles_up_to_the_maximum_when_events_are_small() -> None:
    page_sizer, sizes = PageSizer(MAXIMUM), list[int]()
    for _ in range(8):
        sizes.append(page_sizer.events)
        page_sizer.adapt(page_of(page_sizer.events, 200))
    assert sizes == [100, 200, 400, 800, 1_600, 3_200, MAXIMUM, MAXIMUM]


@pytest.mark.parametrize("characters", [2_000, 20_000, 200_000])
def test_page_has_as_many_events_as_fit_but_at_least_the_minimum(characters: int) -> None:
    page_sizer = PageSizer(MAXIMUM)
    for _ in range(6):
        page_sizer.adapt(page_of(20, characters))
    assert page_sizer.events == max(PAGE_CHARACTERS // characters, MIN_EVENTS)


def test_first_minimum_and_target_size_can_be_set() -> None:
    page_sizer, sizes = PageSizer(50, first=10, minimum=1, characters=6_000), list[int]()
    for characters in (100, 100, 100, 1_000_000, 2_000):
        sizes.append(page_sizer.events)
        page_sizer.adapt(page_of(page_sizer.events, characters))
    assert [*sizes, page_sizer.events] == [10, 20, 40, 50, 1, 2]


def test_page_grows_again_step_by_step_after_large_events() -> None:
    page_sizer = PageSizer(MAXIMUM)
    page_sizer.adapt(page_of(10, 1_000_000))
    assert page_sizer.events == MIN_EVENTS
    page_sizer.adapt(page_of(10, 100))
    assert page_sizer.events == 2 * MIN_EVENTS


def test_shrink_to_fit_shrinks_the_page_and_never_grows_it() -> None:
    page_sizer = PageSizer(MAXIMUM)
    page_sizer.shrink_to_fit(page_of(5, 100))
    assert page_sizer.events == INITIAL_EVENTS
    page_sizer.shrink_to_fit(page_of(5, 1_000_000))
    page_sizer.shrink_to_fit(page_of(5, 100))
    assert page_sizer.events == MIN_EVENTS


@pytest.mark.parametrize("last_page", [[], page_of(3, 0)])
def test_page_without_data_doubles_the_next_one(last_page: list[FoldInput]) -> None:
    page_sizer = PageSizer(MAXIMUM)
    page_sizer.adapt(last_page)
    assert page_sizer.events == 2 * INITIAL_EVENTS
