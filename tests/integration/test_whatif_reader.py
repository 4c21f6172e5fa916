"""A log in Postgres is judged like a list, whatever the size of the pages, and is not changed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import codec
from eventstore.errors import LogNotUnderstood, UnknownEventType
from eventstore.events import TokensSettled
from service import commands as do
from service.history import snapshots
from service.history.time_travel import state_at
from service.whatif import OtherRules, Report, Simulation
from service.whatif.reader import judge
from tests.support.components import connected, running_writer, submit
from tests.support.log import LogWriter, message_sent, new_id, whole_log
from tests.support.random_history import RandomHistory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded


def _judge_list(log: Sequence[Recorded], rules: OtherRules, after: int = 0) -> Report:
    simulation = Simulation(rules, after)
    for recorded in log:
        simulation.process(codec.decode(recorded), recorded)
    return simulation.end(len(log))


async def _judge_log(
    connection: Connection, rules: OtherRules, page_positions: int = 1_000, pages: list[int] | None = None
) -> Report:
    @asynccontextmanager
    async def reading() -> AsyncIterator[Connection]:
        yield connection

    def note(position: int, _: int) -> None:
        if pages is not None:
            pages.append(position)

    return await judge(reading, rules, page_positions=page_positions, at_page=note)


async def _record_history(dsn: str, commands: int) -> None:
    async with running_writer(dsn, policy=do.SetPolicy(daily_tokens=8_000)) as writer:
        await RandomHistory(seed=3).submit_commands(writer, commands)


async def test_log_is_judged_like_a_list_for_any_size_of_pages(database: str) -> None:
    await _record_history(database, 400)
    async with connected(database) as connection:
        log = await whole_log(connection)
        assert not (await _judge_log(connection, OtherRules())).is_different
        rules = OtherRules(daily_tokens=2_000, conflict_window_seconds=0.001, warning_percents=[1, 99])
        expected = _judge_list(log, rules)
        assert expected.refused_instead > 10
        assert expected.allowed_instead > 3
        for page_positions in (1, 7, 1_000):
            assert await _judge_log(connection, rules, page_positions) == expected
        assert await whole_log(connection) == log


async def test_since_is_inclusive_and_until_is_exclusive(database: str) -> None:
    await _record_history(database, 60)
    async with connected(database) as connection:
        log = await whole_log(connection)
        some, other = log[len(log) // 3], log[2 * len(log) // 3]
        assert some.recorded_at < other.recorded_at
        before = sum(recorded.recorded_at < some.recorded_at for recorded in log)
        upto = sum(recorded.recorded_at < other.recorded_at for recorded in log)
        rules: dict[str, Any] = {"daily_tokens": 100, "agent_limits": {"alice": 1}}
        found = await _judge_log(
            connection, OtherRules(**rules, since=some.recorded_at, until=other.recorded_at)
        )
        assert (found.after, found.upto) == (before, upto)
        assert found == _judge_list(log[:upto], OtherRules(**rules), before)
        long_ago = some.recorded_at - timedelta(days=1)
        assert (await _judge_log(connection, OtherRules(**rules, until=long_ago))).upto == 0
        later = other.recorded_at + timedelta(days=1)
        assert not (await _judge_log(connection, OtherRules(**rules, since=later))).is_different


async def test_judging_starts_at_the_last_snapshot_before_the_other_rules_apply(database: str) -> None:
    await _record_history(database, 60)
    async with connected(database) as connection:
        log = await whole_log(connection)
        since = log[2 * len(log) // 3].recorded_at
        rules: dict[str, Any] = {"daily_tokens": 100, "conflict_window_seconds": 0.001}
        expected = await _judge_log(connection, OtherRules(**rules, since=since))
        assert expected.is_different
        start = len(log) // 2
        squad = await state_at(connection, start)
        await snapshots.store(connection, squad, len(log))
        pages: list[int] = []
        assert await _judge_log(connection, OtherRules(**rules, since=since), 10, pages) == expected
        assert pages[0] == start
        assert (await _judge_log(connection, OtherRules(**rules), 10, pages)).after == 0
        assert 0 in pages


async def test_empty_log_makes_no_difference(database: str) -> None:
    async with connected(database) as connection:
        found = await _judge_log(connection, OtherRules(daily_tokens=1))
    assert (found.upto, found.is_different) == (0, False)


async def test_growing_log_is_read_page_by_page_up_to_its_reported_end(database: str) -> None:
    await _record_history(database, 40)
    async with running_writer(database) as writer, connected(database) as connection:
        head = len(await whole_log(connection))
        pages: list[int] = []
        judging = asyncio.create_task(_judge_log(connection, OtherRules(daily_tokens=1), 10, pages))
        for number in range(20):
            await submit(writer, do.RecordUsage(agent="late", tokens=number))
        found = await judging
    assert found.upto >= head
    assert pages == list(range(0, found.upto, 10))


async def test_event_type_of_newer_software_is_refused(database: str) -> None:
    await _record_history(database, 5)
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        await log_writer.append(message_sent("hello"), type="tokens_lent")
        with pytest.raises(UnknownEventType, match="tokens_lent"):
            await _judge_log(connection, OtherRules())


async def test_inconsistent_log_is_refused_with_the_position(database: str) -> None:
    await _record_history(database, 5)
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        await log_writer.catch_up()
        day = (await whole_log(connection))[1].recorded_at.date()
        await log_writer.append(
            TokensSettled(day=day, reservation_id=new_id(), agent="ann", tokens_reserved=5, tokens_used=5)
        )
        with pytest.raises(LogNotUnderstood, match=f"at position {log_writer.head.position}, MissingRow"):
            await _judge_log(connection, OtherRules())
