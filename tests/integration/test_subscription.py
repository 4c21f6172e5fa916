"""A subscription: the whole log once, in order, first what is there and then what comes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from eventstore import log, lookup, page_size, subscription
from eventstore.errors import HeadMoved, StoreUnavailable
from eventstore.listener import Hints
from eventstore.lookup import Filter
from eventstore.subscription import follow
from tests.support.log import LogWriter, joined, said, texts
from tests.support.parts import connected, running_listener
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded

    Opener = Callable[[], AbstractAsyncContextManager[Connection]]

WRITERS = 4
EVENTS_OF_A_WRITER = 50


@pytest.fixture
def opener(database: str) -> Opener:
    return lambda: connected(database)


@pytest.fixture
async def scribe(database: str) -> AsyncIterator[LogWriter]:
    async with connected(database) as connection:
        yield LogWriter(connection)


async def _take(pages: AsyncIterator[list[Recorded]], count: int) -> list[Recorded]:
    """The next events, at least `count` of them. Each page comes soon, however many there are."""
    taken: list[Recorded] = []
    while len(taken) < count:
        async with asyncio.timeout(10):
            taken += await anext(pages)
    return taken


async def test_it_gives_what_is_there_and_then_what_comes(
    scribe: LogWriter, opener: Opener, database: str
) -> None:
    await scribe.append(said("one"), said("two"), said("three"))
    async with (
        running_listener(database) as listener,
        aclosing(follow(opener, listener.events, after=1, poll_seconds=60)) as pages,
    ):
        assert texts(await _take(pages, 2)) == ["two", "three"]
        await scribe.append(said("four"))
        assert texts(await _take(pages, 1)) == ["four"]


async def test_without_any_hint_it_looks_by_itself(scribe: LogWriter, opener: Opener) -> None:
    async with aclosing(follow(opener, Hints(), after=0, poll_seconds=0.05)) as pages:
        next_page = asyncio.ensure_future(_take(pages, 1))
        await scribe.append(said("found"))
        assert texts(await next_page) == ["found"]


async def test_it_reads_on_in_pages_until_it_is_live(
    scribe: LogWriter,
    opener: Opener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await scribe.append(*(said(str(number)) for number in range(25)))
    monkeypatch.setattr(log, "PAGE_EVENTS", 10)
    async with aclosing(follow(opener, Hints(), after=0, poll_seconds=60)) as pages:
        assert [len(await anext(pages)) for _ in range(3)] == [10, 10, 5]


async def test_it_waits_only_where_it_has_read_all(
    scribe: LogWriter, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def wait(_: asyncio.Event, seconds: float) -> None:
        waited.append(seconds)
        await scribe.append(said("the next"))

    monkeypatch.setattr(subscription, "wait_for_hint", wait)
    monkeypatch.setattr(log, "PAGE_EVENTS", 2)
    await scribe.append(said("one"), said("two"), said("three"))
    async with aclosing(follow(opener, Hints(), after=0, poll_seconds=7)) as pages, asyncio.timeout(10):
        assert [texts(await anext(pages)) for _ in range(2)] == [["one", "two"], ["three"]]
        assert waited == []
        assert texts(await anext(pages)) == ["the next"]
    assert waited == [7]


@pytest.mark.parametrize("event_filter", [None, Filter(type="message_sent")])
async def test_its_pages_are_short_where_events_are_large(
    scribe: LogWriter, opener: Opener, monkeypatch: pytest.MonkeyPatch, event_filter: Filter | None
) -> None:
    monkeypatch.setattr(page_size, "INITIAL_EVENTS", 15)
    monkeypatch.setattr(page_size, "PAGE_CHARACTERS", 20_000)
    await scribe.append(*(said("x" * 1_000) for _ in range(60)))
    async with aclosing(
        follow(opener, Hints(), after=0, event_filter=event_filter, poll_seconds=60)
    ) as pages:
        lengths: list[int] = []
        while sum(lengths) < 60:
            lengths.append(len(await anext(pages)))
    assert max(lengths) < 20


async def test_a_filter_lets_through_what_it_names_and_misses_none(
    scribe: LogWriter,
    opener: Opener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "PAGE_EVENTS", 2)
    for number in range(5):
        await scribe.append(joined(f"a{number}"), *(said(f"{number}.{n}") for n in range(7)))
    event_filter = Filter(type="agent_registered")
    async with aclosing(
        follow(opener, Hints(), after=0, event_filter=event_filter, poll_seconds=0.05)
    ) as pages:
        assert [event.position for event in await _take(pages, 5)] == [1, 9, 17, 25, 33]
        await scribe.append(said("not wanted"))
        await scribe.append(joined("wanted"))
        assert [event.position for event in await _take(pages, 1)] == [42]


async def test_what_a_filter_kept_back_is_not_looked_through_again(
    scribe: LogWriter, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    async def read(connection: Connection, after: int, limit: int, event_filter: Filter) -> list[Recorded]:
        begun.append(after)
        return await lookup.read_filtered(connection, after, limit, event_filter)

    monkeypatch.setattr(subscription, "lookup", SimpleNamespace(read_filtered=read))
    await scribe.append(*(said("not wanted") for _ in range(5)))
    event_filter = Filter(type="agent_registered")
    async with aclosing(
        follow(opener, Hints(), after=0, event_filter=event_filter, poll_seconds=0.01)
    ) as pages:
        coming = asyncio.ensure_future(_take(pages, 1))
        await eventually(lambda: len(begun) >= 2)
        await scribe.append(joined("wanted"))
        assert [event.position for event in await coming] == [6]
    assert begun[0] == 0
    assert set(begun[1:]) == {5}


async def test_nothing_is_missed_or_doubled_while_many_append(opener: Opener, database: str) -> None:
    async def write(name: str) -> None:
        async with connected(database) as connection:
            scribe = LogWriter(connection)
            for number in range(EVENTS_OF_A_WRITER):
                while True:
                    await scribe.catch_up()
                    try:
                        await scribe.append(said(f"{name} {number}"))
                    except HeadMoved:
                        continue
                    break

    total = WRITERS * EVENTS_OF_A_WRITER
    event_filter = Filter(type="message_sent")
    async with (
        running_listener(database) as listener,
        aclosing(follow(opener, listener.events, after=0)) as plain,
        aclosing(follow(opener, listener.events, after=0, event_filter=event_filter)) as filtered,
    ):
        followed = [asyncio.ensure_future(_take(pages, total)) for pages in (plain, filtered)]
        await asyncio.gather(*(write(f"writer-{number}") for number in range(WRITERS)))
        for events in await asyncio.gather(*followed):
            assert [event.position for event in events] == list(range(1, total + 1))


async def test_a_read_that_fails_ends_it_with_a_storage_error(database: str) -> None:
    pages = follow(lambda: connected(f"{database} host=127.0.0.1 port=1"), Hints(), after=0)
    with pytest.raises(StoreUnavailable):
        await anext(pages)
