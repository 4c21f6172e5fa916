"""Fail-over from a primary to its standby, with and without synchronous replication."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from eventstore import schema
from eventstore.connection import pool
from eventstore.errors import NotConnected
from tests.support.components import connected, message, running_writer, submit
from tests.support.load import Load
from tests.support.log import message_texts, whole_log
from tests.support.process import squad_up
from tests.support.servers import primary_and_standby, read_until_log_replaced
from tests.support.trial import Trial
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.servers import Pair

pytestmark = pytest.mark.faults

RECOVERY_SECONDS = 10.0
"""The longest backoff, five seconds, plus a heartbeat."""

LOST_ANSWERS = 60

_HEAD = "SELECT max(position) FROM squad.events"


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with primary_and_standby() as started:
        yield started


async def test_failover_to_a_synchronous_standby_under_load_loses_nothing(pair: Pair) -> None:
    async with squad_up(dsn=pair.dsn) as one, squad_up(dsn=pair.dsn) as other:
        outage = Trial("synchronous standby away", RECOVERY_SECONDS, Load([one, other], "early"))
        async with outage.running():
            with outage.fault_injection():
                await pair.disconnect_standby()
                await eventually(one.is_not_ready)
                await pair.reconnect_standby()
            await outage.wait_until_recovered(one, other)
        await outage.verify(pair.primary.dsn)
        load = Load([one, other], "late")
        trial = Trial("kill -9 of the primary, synchronous standby promoted", RECOVERY_SECONDS, load)
        async with trial.running():
            with trial.fault_injection():
                # Anything acknowledged from here until the standby takes over would be lost.
                await pair.disconnect_standby()
                answered = len(load.answered)
                await eventually(lambda: _commits_wait_or_proceed(pair, load, answered + LOST_ANSWERS))
                await pair.fail_over()
            await trial.wait_until_recovered(one, other)
        await trial.verify(pair.standby.dsn)


async def test_failover_to_a_lagging_standby_is_reported_to_clients(pair: Pair) -> None:
    """Commits do not wait for the standby: events that it lacks are lost."""
    await pair.primary.configure("ALTER SYSTEM RESET synchronous_standby_names")
    async with squad_up(dsn=pair.dsn) as service, aiohttp.ClientSession(service.url) as session:
        kept, lost, later = (Load([service], name) for name in ("kept", "lost", "later"))
        async with kept.running(clients=2):
            await kept.wait_for_answers(LOST_ANSWERS)
        await eventually(lambda: _has_caught_up(pair))
        await pair.disconnect_standby()
        async with session.get("/api/v1/events/stream") as stream:
            async with lost.running(clients=2):
                await lost.wait_for_answers(LOST_ANSWERS)
            newest = max(answer.body["position"] for _, answer in lost.answered)
            await pair.fail_over()
            async with asyncio.timeout(RECOVERY_SECONDS):
                await read_until_log_replaced(stream)
        await eventually(service.is_ready, within_seconds=RECOVERY_SECONDS)
        assert await service.metric("squad_log_replacements_total") == 1
        assert "the log was replaced" in service.output().lower()
        await _assert_lost_positions_are_reported(session, newest)
        async with later.running(clients=2):
            await later.wait_for_answers(LOST_ANSWERS)
        await eventually(lambda: projected_to_head(pair.standby.dsn))
    events = await assert_log_is_sound(pair.standby.dsn)
    kept.compare(events).assert_consistent()
    later.compare(events).assert_consistent()
    # The test above would see this loss if commits were answered before a standby has them.
    assert len(lost.compare(events).lost) == len(lost.answered)
    assert await assert_tables_equal_fold(pair.standby.dsn) > 0


async def test_commit_that_only_the_primary_has_is_not_acknowledged(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The primary is killed while the commit waits; after its restart it has events that no standby has."""
    monkeypatch.setattr("service.writing.confirmed.STUCK_AFTER_SECONDS", 0.5)
    await schema.apply(pair.dsn, "squad")
    async with running_writer(pair.dsn) as writer:
        await submit(writer, message("before"))
        await pair.disconnect_standby()
        in_doubt = asyncio.ensure_future(submit(writer, message("doubtful"), timeout_seconds=60))
        await eventually(pair.waiting_commits, within_seconds=20)
        pair.primary.kill()
        await pair.primary.start()
        async with connected(pair.primary.dsn) as connection:
            assert message_texts(await whole_log(connection)) == ["before", "doubtful"]
        await eventually(
            lambda: writer.problem and "no synchronous standby" in writer.problem, within_seconds=30
        )
        assert not in_doubt.done()
        await pair.fail_over()
        outcome = await in_doubt
        await submit(writer, message("after"))
    events = await assert_log_is_sound(pair.standby.dsn)
    assert message_texts(events) == ["before", "doubtful", "after"]
    assert outcome.position is not None
    assert message_texts(events[outcome.position - 1 :]) == ["doubtful", "after"]


async def test_old_primary_that_comes_back_is_not_used(pair: Pair) -> None:
    """It accepts writes and is first in the DSN; commits do not wait for a standby."""
    await pair.primary.configure("ALTER SYSTEM RESET synchronous_standby_names")
    async with squad_up(dsn=pair.dsn) as one, squad_up(dsn=pair.dsn) as other:
        load = Load([one, other])
        async with load.running(clients=2):
            await load.wait_for_answers(LOST_ANSWERS)
        await eventually(lambda: _has_caught_up(pair))
        await pair.fail_over()
        for service in (one, other):
            await eventually(service.is_ready, within_seconds=RECOVERY_SECONDS)
        await pair.primary.start()
        old_head = await pair.primary.query(_HEAD)
        later = Load([one, other], "later")
        async with later.running(clients=2):
            await pair.standby.query(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE 'squad %'"
            )
            await later.wait_for_answers(LOST_ANSWERS)
        assert "is an old primary" in one.output()
        assert await pair.primary.query(_HEAD) == old_head
        await eventually(lambda: projected_to_head(pair.standby.dsn))
        await later.assert_retries_get_same_answers()
        assert await one.metric("squad_log_replacements_total") == 0
    events = await assert_log_is_sound(pair.standby.dsn)
    load.compare(events).assert_consistent()
    later.compare(events).assert_consistent()


async def test_old_primary_is_rejected_once_the_new_primary_has_been_seen(pair: Pair) -> None:
    await pair.fail_over()
    await pair.primary.start()
    async with connected(pair.dsn) as connection:
        assert connection.info.host == str(pair.primary.cluster.data)
    async with connected(pair.standby.dsn):
        pass
    async with connected(pair.dsn) as connection:
        assert connection.info.host == str(pair.standby.cluster.data)
    async with (
        pool(pair.dsn, "squad", name="squad test", size=1) as readers,
        readers.connection() as reading,
    ):
        assert reading.info.host == str(pair.standby.cluster.data)
    with pytest.raises(NotConnected, match="is an old primary"):
        async with connected(pair.primary.dsn):
            pass
    await pair.standby.stop()
    with pytest.raises(NotConnected, match=r"is an old primary, .*; .*standby"):
        async with connected(pair.dsn):
            pass


async def _commits_wait_or_proceed(pair: Pair, load: Load, answers: int) -> bool:
    """Whether commits wait for the standby, as they must, or this many requests are answered without it."""
    return await pair.waiting_commits() > 0 or len(load.answered) >= answers


async def _has_caught_up(pair: Pair) -> bool:
    """Whether the standby has replayed everything that the primary has written."""
    return bool(
        await pair.primary.query("SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication")
    )


async def _assert_lost_positions_are_reported(session: aiohttp.ClientSession, newest: int) -> None:
    """Fail unless every kind of read reports that the log ends before this position."""

    async def assert_not_yet(path: str) -> None:
        async with session.get(f"/api/v1/{path}={newest}") as answer:
            body = await answer.json()
            assert (answer.status, body["code"]) == (504, "not_yet"), path
            assert body["ends_at"] < newest

    paths = ("messages?min_position", "budget?min_position", "events?after", "events/stream?after")
    await asyncio.gather(*map(assert_not_yet, paths))
