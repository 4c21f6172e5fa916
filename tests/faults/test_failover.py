"""The primary is gone and its standby takes over: what was acknowledged is there, and all goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from eventstore import schema
from eventstore.connection import pool
from eventstore.errors import NotConnected
from tests.support.load import Load
from tests.support.log import texts, whole_log
from tests.support.parts import connected, message, running_writer, submit
from tests.support.process import squad_up
from tests.support.servers import primary_and_standby, told_of_another_log
from tests.support.trial import Trial
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.servers import Pair

pytestmark = pytest.mark.faults

AFTER_A_FAILOVER_SECONDS = 10.0
"""The longest wait between two attempts, five seconds, and a heartbeat."""

LOST_ANSWERS = 60

_HEAD = "SELECT max(position) FROM squad.events"


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with primary_and_standby() as started:
        yield started


async def test_a_synchronous_standby_takes_over_under_load(pair: Pair) -> None:
    async with squad_up(dsn=pair.dsn) as one, squad_up(dsn=pair.dsn) as other:
        away = Trial("synchronous standby away", AFTER_A_FAILOVER_SECONDS, Load([one, other], "early"))
        async with away.running():
            with away.cause():
                await pair.part()
                await eventually(one.is_not_ready)
                await pair.reunite()
            await away.well(one, other)
        await away.judge(pair.primary.dsn)
        load = Load([one, other], "late")
        trial = Trial(
            "kill -9 of the primary, synchronous standby promoted", AFTER_A_FAILOVER_SECONDS, load
        )
        async with trial.running():
            with trial.cause():
                # From here on, whatever is acknowledged before the standby takes over is lost.
                await pair.part()
                answered = len(load.answered)
                await eventually(lambda: _wait_or_do_not(pair, load, answered + LOST_ANSWERS))
                await pair.fail_over()
            await trial.well(one, other)
        await trial.judge(pair.standby.dsn)


async def test_a_standby_that_lacks_the_end_takes_over_and_everybody_is_told(pair: Pair) -> None:
    """Commits do not wait for it: what it lacks is lost, and the services know no more of it."""
    await pair.primary.set("ALTER SYSTEM RESET synchronous_standby_names")
    async with squad_up(dsn=pair.dsn) as service, aiohttp.ClientSession(service.url) as session:
        kept, lost, later = (Load([service], name) for name in ("kept", "lost", "later"))
        async with kept.running(clients=2):
            await kept.more(LOST_ANSWERS)
        await eventually(lambda: _has_all(pair))
        await pair.part()
        async with session.get("/api/v1/events/stream") as stream:
            async with lost.running(clients=2):
                await lost.more(LOST_ANSWERS)
            newest = max(answer.body["position"] for _, answer in lost.answered)
            await pair.fail_over()
            async with asyncio.timeout(AFTER_A_FAILOVER_SECONDS):
                await told_of_another_log(stream)
        await eventually(service.is_ready, within_seconds=AFTER_A_FAILOVER_SECONDS)
        assert await service.metric("squad_log_replacements_total") == 1
        assert "the log was replaced" in service.story().lower()
        await _assert_told(session, newest)
        async with later.running(clients=2):
            await later.more(LOST_ANSWERS)
        await eventually(lambda: projected_to_head(pair.standby.dsn))
    events = await assert_log_is_sound(pair.standby.dsn)
    kept.compare(events).assert_nothing_amiss()
    later.compare(events).assert_nothing_amiss()
    # This is what the other test would see, if commits were answered that no standby has.
    assert len(lost.compare(events).lost) == len(lost.answered)
    assert await assert_tables_equal_fold(pair.standby.dsn) > 0


async def test_a_commit_that_only_the_primary_has_is_not_acknowledged(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed while the commit waits, and shows after its restart what no standby has."""
    monkeypatch.setattr("service.writing.confirmed.STUCK_AFTER_SECONDS", 0.5)
    await schema.apply(pair.dsn, "squad")
    async with running_writer(pair.dsn) as writer:
        await submit(writer, message("before"))
        await pair.part()
        doubtful = asyncio.ensure_future(submit(writer, message("doubtful"), timeout_seconds=60))
        await eventually(pair.waiting_commits, within_seconds=20)
        pair.primary.kill()
        await pair.primary.start()
        async with connected(pair.primary.dsn) as connection:
            assert texts(await whole_log(connection)) == ["before", "doubtful"]
        await eventually(
            lambda: writer.problem and "no synchronous standby" in writer.problem, within_seconds=30
        )
        assert not doubtful.done()
        await pair.fail_over()
        outcome = await doubtful
        await submit(writer, message("after"))
    events = await assert_log_is_sound(pair.standby.dsn)
    assert texts(events) == ["before", "doubtful", "after"]
    assert outcome.position is not None
    assert texts(events[outcome.position - 1 :]) == ["doubtful", "after"]


async def test_an_old_primary_that_comes_back_is_passed_over(pair: Pair) -> None:
    """It takes writes as if nothing had happened, and stands first in the DSN; commits wait for nobody."""
    await pair.primary.set("ALTER SYSTEM RESET synchronous_standby_names")
    async with squad_up(dsn=pair.dsn) as one, squad_up(dsn=pair.dsn) as other:
        load = Load([one, other])
        async with load.running(clients=2):
            await load.more(LOST_ANSWERS)
        await eventually(lambda: _has_all(pair))
        await pair.fail_over()
        for service in (one, other):
            await eventually(service.is_ready, within_seconds=AFTER_A_FAILOVER_SECONDS)
        await pair.primary.start()
        ended = await pair.primary.ask(_HEAD)
        later = Load([one, other], "later")
        async with later.running(clients=2):
            await pair.standby.ask(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE 'squad %'"
            )
            await later.more(LOST_ANSWERS)
        assert "is an old primary" in one.story()
        assert await pair.primary.ask(_HEAD) == ended
        await eventually(lambda: projected_to_head(pair.standby.dsn))
        await later.assert_answers_stand()
        assert await one.metric("squad_log_replacements_total") == 0
    events = await assert_log_is_sound(pair.standby.dsn)
    load.compare(events).assert_nothing_amiss()
    later.compare(events).assert_nothing_amiss()


async def test_who_has_met_the_new_primary_keeps_away_from_the_old_one(pair: Pair) -> None:
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


async def _wait_or_do_not(pair: Pair, load: Load, answers: int) -> bool:
    """Whether commits wait for the standby, as they must, or so many requests are answered without it."""
    return await pair.waiting_commits() > 0 or len(load.answered) >= answers


async def _has_all(pair: Pair) -> bool:
    """Whether the standby has taken in what the primary has written."""
    return bool(await pair.primary.ask("SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication"))


async def _assert_told(session: aiohttp.ClientSession, newest: int) -> None:
    """Whoever holds a position of what is lost is told so, however they ask."""

    async def ask(path: str) -> None:
        async with session.get(f"/api/v1/{path}={newest}") as answer:
            body = await answer.json()
            assert (answer.status, body["code"]) == (504, "not_yet"), path
            assert body["ends_at"] < newest

    ways = ("messages?min_position", "budget?min_position", "events?after", "events/stream?after")
    await asyncio.gather(*map(ask, ways))
