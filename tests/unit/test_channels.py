"""A follower gets the events that pass its filter, once and in order, and is woken by no others."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING

import orjson
import pytest

from eventstore.lookup import Filter
from eventstore.recorded import Recorded
from service import channels as module
from service import tail as tails
from service.channels import Channel, Channels, agent_of
from service.http.open_streams import Throttle
from service.tail import Tail
from tests.support.wait import eventually
from tests.unit.stories import START

if TYPE_CHECKING:
    from collections.abc import Sequence

TYPES = ("message_sent", "tokens_used", "task_created")
AGENTS = ("ada", "bob", None)
STREAMS = ("agent-ada", "budget-1")


def event(position: int, type_: str = TYPES[0], stream: str = STREAMS[0], **data: str | None) -> Recorded:
    text = orjson.dumps(data).decode()
    return Recorded(position, "id", stream, 1, type_, 1, text, "actor", None, "c", None, START, b"")


def passes(recorded: Recorded, wanted: Filter) -> bool:
    return (
        wanted.type in (None, recorded.type)
        and wanted.stream in (None, recorded.stream)
        and wanted.agent in (None, agent_of(recorded))
    )


async def _unchanged(page: Sequence[Recorded]) -> list[Recorded]:
    return list(page)


@pytest.fixture
def tail() -> Tail:
    return Tail(_unchanged)


@pytest.fixture
def channels(tail: Tail) -> Channels:
    return Channels(tail)


async def positions(channel: Channel, after: int, limit: int = 100) -> list[int] | None:
    found = await channel.after(after, limit)
    return None if found is None else [recorded.position for recorded in found.events]


@pytest.mark.parametrize("seed", range(5))
async def test_every_follower_gets_the_events_that_pass_its_filter(
    channels: Channels, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(module, "_TRIM_AFTER", 5)
    monkeypatch.setattr(tails, "MAX_EVENTS", 40)
    random = Random(seed)
    wanted = [
        Filter(type_, stream, agent)
        for type_ in (None, *TYPES)
        for stream in (None, *STREAMS)
        for agent in ("ada", "bob", "eve", None)
    ]
    log: list[Recorded] = []
    with contextlib.ExitStack() as stack:
        followed = [(each, stack.enter_context(channels.subscribe(each))) for each in wanted]
        at = dict.fromkeys(wanted, 0)
        got: dict[Filter, list[int]] = {each: [] for each in wanted}
        for _ in range(100):
            page = [
                event(
                    len(log) + number,
                    random.choice(TYPES),
                    random.choice(STREAMS),
                    agent=random.choice(AGENTS),
                )
                for number in range(1, random.randint(2, 20))
            ]
            log += page
            channels.extend(page)
            for each, channel in followed:
                # A limit that is sometimes reached, so that some events are left for the next call.
                found = await channel.after(at[each], 3)
                while found and found.upto < len(log):
                    got[each] += [recorded.position for recorded in found.events]
                    at[each] = found.upto
                    found = await channel.after(at[each], 3)
                assert found is not None
                got[each] += [recorded.position for recorded in found.events]
                at[each] = found.upto
    for each in wanted:
        assert got[each] == [recorded.position for recorded in log if passes(recorded, each)]


async def test_event_wakes_only_the_followers_whose_filter_it_passes(channels: Channels) -> None:
    with (
        channels.subscribe(Filter()) as everything,
        channels.subscribe(Filter(agent="ada")) as hers,
        channels.subscribe(Filter(agent="bob")) as his,
    ):
        waiters = [channel.advanced.waiter() for channel in (everything, hers, his)]
        channels.extend([event(1, agent="ada")])
        assert [waiter.is_set() for waiter in waiters] == [True, True, False]


async def test_channel_returns_none_before_the_position_where_it_began(channels: Channels) -> None:
    channels.extend([event(5, agent="ada"), event(6, agent="ada")])
    with channels.subscribe(Filter(agent="ada")) as channel:
        assert await positions(channel, 5) is None
        assert await positions(channel, 6) == []
        channels.extend([event(7, agent="ada")])
        assert await positions(channel, 6) == [7]


async def test_channel_returns_none_when_events_are_no_longer_in_memory(
    channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "MAX_EVENTS", 3)
    with channels.subscribe(Filter(agent="ada")) as channel:
        for position in range(1, 20):
            channels.extend([event(position, agent="ada" if position == 1 else "bob")])
        # The only event that passes is no longer in memory: the answer must not be that there is none.
        assert await positions(channel, 0) is None
        assert await positions(channel, 18) == []


async def test_channel_drops_positions_that_are_no_longer_in_memory(
    channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TRIM_AFTER", 5)
    monkeypatch.setattr(tails, "MAX_EVENTS", 10)
    with channels.subscribe(Filter()) as channel:
        for position in range(1, 201):
            channels.extend([event(position)])
        assert len(channel._positions) < 50
        assert await positions(channel, 197) == [198, 199, 200]


async def test_channel_reports_the_position_it_searched_up_to_when_nothing_passed(
    channels: Channels,
) -> None:
    with channels.subscribe(Filter(agent="ada")) as channel:
        channels.extend([event(position, agent="bob") for position in range(1, 9)])
        found = await channel.after(2, 10)
        assert found is not None
        assert (list(found.events), found.upto) == ([], 8)


async def test_followers_of_one_filter_share_a_channel_until_the_last_one_leaves(
    channels: Channels,
) -> None:
    with channels.subscribe(Filter(agent="ada")) as first:
        with channels.subscribe(Filter(agent="ada")) as second:
            assert first is second
        channels.extend([event(1, agent="ada")])
        assert await positions(first, 0) == [1]
    with channels.subscribe(Filter(agent="ada")) as later:
        assert later is not first
        assert await positions(later, 0) is None


async def test_cancelled_follower_leaves_no_channel_behind(channels: Channels) -> None:
    wanted = Filter(agent="ada")
    with contextlib.suppress(asyncio.CancelledError), channels.subscribe(wanted) as first:
        raise asyncio.CancelledError
    with channels.subscribe(wanted) as later:
        assert later is not first


class TestThrottle:
    async def test_turns_run_one_at_a_time_in_order(self) -> None:
        throttle, seen = Throttle(), list[str]()

        async def one(name: str) -> None:
            async with throttle.turn(0):
                seen.append(f"{name} begins")
                await asyncio.sleep(0)
                seen.append(f"{name} ends")

        await asyncio.gather(*map(one, "abc"))
        assert seen == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]

    async def test_pauses_are_proportional_to_the_duration_of_the_turns(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slept, now = _manual_clock(monkeypatch)
        throttle = Throttle()
        for _ in range(10):
            async with throttle.turn(4):
                now[0] += 0.001
        # Pauses too short for a timer add up: two turns owe 8 ms, of which 1 ms has passed.
        assert slept == pytest.approx([0.007] * 4)
        # A pause that has passed is not made up for.
        now[0] += 60
        async with throttle.turn(4):
            pass
        assert len(slept) == 4

    async def test_pause_is_bounded_and_only_the_next_turn_waits_for_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slept, now = _manual_clock(monkeypatch)
        throttle = Throttle()

        async def cancelled() -> None:
            async with throttle.turn(9):
                now[0] += 20.0
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await cancelled()
        assert slept == []
        async with throttle.turn(9):
            assert slept == pytest.approx([1.0])

    async def test_failed_or_cancelled_turn_does_not_block_the_next_one(self) -> None:
        throttle = Throttle()
        with pytest.raises(RuntimeError):
            async with throttle.turn(1):
                raise RuntimeError

        async def for_ever() -> None:
            async with throttle.turn(1):
                await asyncio.Event().wait()

        stuck = asyncio.create_task(for_ever())
        waiting = asyncio.create_task(for_ever())
        await eventually(lambda: throttle._taken.locked())
        waiting.cancel()
        stuck.cancel()
        await asyncio.gather(stuck, waiting, return_exceptions=True)
        async with asyncio.timeout(5), throttle.turn(1):
            pass


async def test_reset_discards_all_events_and_wakes_every_follower(
    channels: Channels,
) -> None:
    with channels.subscribe(Filter()) as channel:
        channels.extend([event(position) for position in range(1, 6)])
        assert await positions(channel, 2) == [3, 4, 5]
        waiter = channel.advanced.waiter()
        channels.reset()
        assert waiter.is_set()
        assert await positions(channel, 2) is None
        channels.extend([event(4, stream=STREAMS[1])])
        assert await positions(channel, 2) is None
        found = await channel.after(3, 100)
        assert found is not None
        assert [one.stream for one in found.events] == [STREAMS[1]]


def _manual_clock(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[float]]:
    """Return the durations of all sleeps, and a clock that only a test or a sleep moves."""
    slept: list[float] = []
    now = [100.0]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("service.http.open_streams.monotonic", lambda: now[0])
    monkeypatch.setattr("service.http.open_streams.asyncio.sleep", sleep)
    return slept, now
