"""Whoever follows a filter gets what passes it, once and in order, and is woken by nothing else."""

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
from tests.unit.support import START

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


async def _as_they_are(page: Sequence[Recorded]) -> list[Recorded]:
    return list(page)


@pytest.fixture
def tail() -> Tail:
    return Tail(_as_they_are)


@pytest.fixture
def channels(tail: Tail) -> Channels:
    return Channels(tail)


async def positions(channel: Channel, after: int, limit: int = 100) -> list[int] | None:
    found = await channel.after(after, limit)
    return None if found is None else [recorded.position for recorded in found.events]


@pytest.mark.parametrize("seed", range(5))
async def test_every_follower_gets_what_passes_its_filter(
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
                # A limit that is reached now and then, so that something is left for the next time.
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


async def test_only_those_are_woken_whom_it_is_for(channels: Channels) -> None:
    with (
        channels.subscribe(Filter()) as everything,
        channels.subscribe(Filter(agent="ada")) as hers,
        channels.subscribe(Filter(agent="bob")) as his,
    ):
        waiters = [channel.advanced.waiter() for channel in (everything, hers, his)]
        channels.extend([event(1, agent="ada")])
        assert [waiter.is_set() for waiter in waiters] == [True, True, False]


async def test_whoever_is_further_behind_than_the_channel_is_told(channels: Channels) -> None:
    channels.extend([event(5, agent="ada"), event(6, agent="ada")])
    with channels.subscribe(Filter(agent="ada")) as channel:
        assert await positions(channel, 5) is None
        assert await positions(channel, 6) == []
        channels.extend([event(7, agent="ada")])
        assert await positions(channel, 6) == [7]


async def test_what_memory_has_let_go_is_not_passed_over(
    channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "MAX_EVENTS", 3)
    with channels.subscribe(Filter(agent="ada")) as channel:
        for position in range(1, 20):
            channels.extend([event(position, agent="ada" if position == 1 else "bob")])
        # The only one that passes is not in memory any more: nobody is told that there is none.
        assert await positions(channel, 0) is None
        assert await positions(channel, 18) == []


async def test_a_channel_keeps_no_more_than_memory_does(
    channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TRIM_AFTER", 5)
    monkeypatch.setattr(tails, "MAX_EVENTS", 10)
    with channels.subscribe(Filter()) as channel:
        for position in range(1, 201):
            channels.extend([event(position)])
        assert len(channel._positions) < 50
        assert await positions(channel, 197) == [198, 199, 200]


async def test_how_far_was_looked_is_told_where_nothing_passed(channels: Channels) -> None:
    with channels.subscribe(Filter(agent="ada")) as channel:
        channels.extend([event(position, agent="bob") for position in range(1, 9)])
        found = await channel.after(2, 10)
        assert found is not None
        assert (list(found.events), found.upto) == ([], 8)


async def test_followers_of_the_same_share_a_channel_for_as_long_as_there_are_any(
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


async def test_a_follower_that_is_cut_short_leaves_no_channel_behind(channels: Channels) -> None:
    wanted = Filter(agent="ada")
    with contextlib.suppress(asyncio.CancelledError), channels.subscribe(wanted) as first:
        raise asyncio.CancelledError
    with channels.subscribe(wanted) as later:
        assert later is not first


class TestLane:
    async def test_turns_come_one_at_a_time_in_their_order(self) -> None:
        lane, seen = Throttle(), list[str]()

        async def one(name: str) -> None:
            async with lane.turn(0):
                seen.append(f"{name} begins")
                await asyncio.sleep(0)
                seen.append(f"{name} ends")

        await asyncio.gather(*map(one, "abc"))
        assert seen == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]

    async def test_it_rests_in_proportion_to_what_it_did(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slept, now = _by_hand(monkeypatch)
        lane = Throttle()
        for _ in range(10):
            async with lane.turn(4):
                now[0] += 0.001
        # What is too short for a timer is saved up: two turns owe eight, of which one has gone by.
        assert slept == pytest.approx([0.007] * 4)
        # Nobody rests for what nobody has done meanwhile.
        now[0] += 60
        async with lane.turn(4):
            pass
        assert len(slept) == 4

    async def test_only_the_next_one_waits_for_a_rest_and_never_for_long(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slept, now = _by_hand(monkeypatch)
        lane = Throttle()

        async def cancelled() -> None:
            async with lane.turn(9):
                now[0] += 20.0
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await cancelled()
        assert slept == []
        async with lane.turn(9):
            assert slept == pytest.approx([1.0])

    async def test_one_that_fails_or_is_cancelled_holds_up_nobody(self) -> None:
        lane = Throttle()
        with pytest.raises(RuntimeError):
            async with lane.turn(1):
                raise RuntimeError

        async def for_ever() -> None:
            async with lane.turn(1):
                await asyncio.Event().wait()

        stuck = asyncio.create_task(for_ever())
        waiting = asyncio.create_task(for_ever())
        await eventually(lambda: lane._taken.locked())
        waiting.cancel()
        stuck.cancel()
        await asyncio.gather(stuck, waiting, return_exceptions=True)
        async with asyncio.timeout(5), lane.turn(1):
            pass


async def test_of_a_log_that_was_replaced_nothing_is_given_and_everybody_is_woken(
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


def _by_hand(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[float]]:
    """A clock that goes on when it is told to, or somebody sleeps; and how long they slept."""
    slept: list[float] = []
    now = [100.0]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("service.http.open_streams.monotonic", lambda: now[0])
    monkeypatch.setattr("service.http.open_streams.asyncio.sleep", sleep)
    return slept, now
