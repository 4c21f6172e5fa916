"""A subscription delivers the whole log once and in order: first the stored events, then new ones."""

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
from tests.support.components import connected, running_listener
from tests.support.log import LogWriter, agent_registered, message_sent, message_texts
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded

    Opener = Callable[[], AbstractAsyncContextManager[Connection]]

WRITERS = 4
EVENTS_PER_WRITER = 50


@pytest.fixture
def opener(database: str) -> Opener:
    return lambda: connected(database)


@pytest.fixture
async def log_writer(database: str) -> AsyncIterator[LogWriter]:
    async with connected(database) as connection:
        yield LogWriter(connection)


async def _take(pages: AsyncIterator[list[Recorded]], count: int) -> list[Recorded]:
    """The next events, at least `count` of them; each page must come within ten seconds."""
    taken: list[Recorded] = []
    while len(taken) < count:
        async with asyncio.timeout(10):
            taken += await anext(pages)
    return taken


async def test_stored_events_are_followed_by_new_ones(
    log_writer: LogWriter, opener: Opener, database: str
) -> None:
    await log_writer.append(message_sent("one"), message_sent("two"), message_sent("three"))
    async with (
        running_listener(database) as listener,
        aclosing(follow(opener, listener.events, after=1, poll_seconds=60)) as pages,
    ):
        assert message_texts(await _take(pages, 2)) == ["two", "three"]
        await log_writer.append(message_sent("four"))
        assert message_texts(await _take(pages, 1)) == ["four"]


async def test_new_events_are_found_without_any_hint(log_writer: LogWriter, opener: Opener) -> None:
    async with aclosing(follow(opener, Hints(), after=0, poll_seconds=0.05)) as pages:
        next_page = asyncio.ensure_future(_take(pages, 1))
        await log_writer.append(message_sent("found"))
        assert message_texts(await next_page) == ["found"]


async def test_stored_events_are_read_in_pages(
    log_writer: LogWriter,
    opener: Opener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await log_writer.append(*(message_sent(str(number)) for number in range(25)))
    monkeypatch.setattr(log, "PAGE_EVENTS", 10)
    async with aclosing(follow(opener, Hints(), after=0, poll_seconds=60)) as pages:
        assert [len(await anext(pages)) for _ in range(3)] == [10, 10, 5]


async def test_subscription_waits_only_when_it_has_read_everything(
    log_writer: LogWriter, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def wait(_: asyncio.Event, seconds: float) -> None:
        waited.append(seconds)
        await log_writer.append(message_sent("the next"))

    monkeypatch.setattr(subscription, "wait_for_hint", wait)
    monkeypatch.setattr(log, "PAGE_EVENTS", 2)
    await log_writer.append(message_sent("one"), message_sent("two"), message_sent("three"))
    async with aclosing(follow(opener, Hints(), after=0, poll_seconds=7)) as pages, asyncio.timeout(10):
        assert [message_texts(await anext(pages)) for _ in range(2)] == [["one", "two"], ["three"]]
        assert waited == []
        assert message_texts(await anext(pages)) == ["the next"]
    assert waited == [7]


@pytest.mark.parametrize("event_filter", [None, Filter(type="message_sent")])
async def test_pages_are_short_when_events_are_large(
    log_writer: LogWriter, opener: Opener, monkeypatch: pytest.MonkeyPatch, event_filter: Filter | None
) -> None:
    monkeypatch.setattr(page_size, "INITIAL_EVENTS", 15)
    monkeypatch.setattr(page_size, "PAGE_CHARACTERS", 20_000)
    await log_writer.append(*(message_sent("x" * 1_000) for _ in range(60)))
    async with aclosing(
        follow(opener, Hints(), after=0, event_filter=event_filter, poll_seconds=60)
    ) as pages:
        lengths: list[int] = []
        while sum(lengths) < 60:
            lengths.append(len(await anext(pages)))
    assert max(lengths) < 20


async def test_filter_delivers_all_matching_events_and_no_others(
    log_writer: LogWriter,
    opener: Opener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "PAGE_EVENTS", 2)
    for number in range(5):
        await log_writer.append(
            agent_registered(f"a{number}"), *(message_sent(f"{number}.{n}") for n in range(7))
        )
    event_filter = Filter(type="agent_registered")
    async with aclosing(
        follow(opener, Hints(), after=0, event_filter=event_filter, poll_seconds=0.05)
    ) as pages:
        assert [event.position for event in await _take(pages, 5)] == [1, 9, 17, 25, 33]
        await log_writer.append(message_sent("not wanted"))
        await log_writer.append(agent_registered("wanted"))
        assert [event.position for event in await _take(pages, 1)] == [42]


async def test_events_that_do_not_match_the_filter_are_not_read_again(
    log_writer: LogWriter, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []

    async def read(connection: Connection, after: int, limit: int, event_filter: Filter) -> list[Recorded]:
        starts.append(after)
        return await lookup.read_filtered(connection, after, limit, event_filter)

    monkeypatch.setattr(subscription, "lookup", SimpleNamespace(read_filtered=read))
    await log_writer.append(*(message_sent("not wanted") for _ in range(5)))
    event_filter = Filter(type="agent_registered")
    async with aclosing(
        follow(opener, Hints(), after=0, event_filter=event_filter, poll_seconds=0.01)
    ) as pages:
        next_page = asyncio.ensure_future(_take(pages, 1))
        await eventually(lambda: len(starts) >= 2)
        await log_writer.append(agent_registered("wanted"))
        assert [event.position for event in await next_page] == [6]
    assert starts[0] == 0
    assert set(starts[1:]) == {5}


async def test_no_event_is_missed_or_repeated_during_concurrent_appends(
    opener: Opener, database: str
) -> None:
    async def write(name: str) -> None:
        async with connected(database) as connection:
            log_writer = LogWriter(connection)
            for number in range(EVENTS_PER_WRITER):
                while True:
                    await log_writer.catch_up()
                    try:
                        await log_writer.append(message_sent(f"{name} {number}"))
                    except HeadMoved:
                        continue
                    break

    total = WRITERS * EVENTS_PER_WRITER
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


async def test_failed_read_ends_the_subscription_with_a_storage_error(database: str) -> None:
    pages = follow(lambda: connected(f"{database} host=127.0.0.1 port=1"), Hints(), after=0)
    with pytest.raises(StoreUnavailable):
        await anext(pages)
