"""A job every second on three processes, one of which is killed: no tick is lost, none runs twice.

`SQUAD_TEST_TICKS=60` makes the test run for a minute.
"""

from __future__ import annotations

import json
import os
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.agents import after, running_agents
from tests.support.components import connected
from tests.support.process import squad_up
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.agents import Agents
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

PROCESSES = 3
TICKS = int(os.environ.get("SQUAD_TEST_TICKS", "16"))

# The same query is in docs/scheduling.md.
OUTCOMES = """
    SELECT t.tick, count(DISTINCT s.data ->> 'run_id') AS runs,
           array_agg(o.data ->> 'outcome') FILTER (WHERE o.type IS NOT NULL) AS outcomes
      FROM (SELECT generate_series(min((data ->> 'tick')::timestamptz),
                                   max((data ->> 'tick')::timestamptz), '1 second') AS tick
              FROM events
             WHERE type = 'run_started' AND data ->> 'job' = 'heartbeat') AS t
      LEFT JOIN events AS s
        ON s.type = 'run_started' AND s.data ->> 'job' = 'heartbeat'
       AND (s.data ->> 'tick')::timestamptz = t.tick
      LEFT JOIN events AS o
        ON o.type = 'run_finished' AND o.data ->> 'run_id' = s.data ->> 'run_id'
     GROUP BY t.tick
     ORDER BY t.tick
"""


class Tick(NamedTuple):
    """The runs and outcomes of one tick, from the log."""

    tick: datetime
    runs: int
    outcomes: list[str] | None


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    async with running_agents() as running:
        # Long enough for the killed process to have a run in progress, as a rule.
        running.on("/heartbeat", after(0.8))
        yield running


async def ticks(dsn: str) -> list[Tick]:
    """Every tick from the first to the last, with its runs and outcomes."""
    async with connected(dsn) as connection:
        cursor = await connection.execute(OUTCOMES.encode())
        return [Tick(*row) for row in await cursor.fetchall()]


async def test_every_tick_has_one_run_and_one_outcome_when_a_process_is_killed(
    database: str, agents: Agents
) -> None:
    settings: dict[str, str] = {
        "SQUAD_AGENTS": json.dumps({"worker": {"role": "test", "url": agents.url}}),
        "SQUAD_JOBS": json.dumps(
            {
                "heartbeat": {
                    "agent": "worker",
                    "endpoint": "/heartbeat",
                    "every": "1s",
                    "retries": 1,
                    # A run that waits for its lease to expire must not block the next ones.
                    "overlap": "allow_all",
                },
            }
        ),
    }
    async with AsyncExitStack() as stack:
        services: list[ServiceProcess] = [
            await stack.enter_async_context(squad_up(dsn=database, data=None, **settings))
            for _ in range(PROCESSES)
        ]

        async def finished(count: int) -> bool:
            return len([tick for tick in await ticks(database) if tick.outcomes]) >= count

        await eventually(lambda: finished(3), within_seconds=20)
        killed = await process_with_a_run(database, services)
        await killed.kill()
        await eventually(lambda: finished(TICKS), within_seconds=TICKS + 20)
        # Others take over the killed process's run once its lease has expired.
        await eventually(lambda: no_run_is_open(database), within_seconds=30)
        for service in services:
            if service is not killed:
                assert await service.stop() == 0
    found = await ticks(database)
    assert {later.tick - tick.tick for tick, later in pairwise(found)} == {timedelta(seconds=1)}
    assert [tick for tick in found if tick.runs != 1 or tick.outcomes != ["succeeded"]] == []
    retried = [call for call in agents.calls if call.payload["attempt"] > 1]
    print(f"{len(found)} ticks, {len(agents.calls)} calls, {len(retried)} taken over after the kill")
    assert retried
    attempts = {(call.payload["run_id"], call.payload["attempt"]) for call in agents.calls}
    assert len(attempts) == len(agents.calls), "an attempt was made twice"
    await assert_log_is_sound(database)
    if await projected_to_head(database):
        assert await assert_tables_equal_fold(database) > 0


async def process_with_a_run(dsn: str, services: list[ServiceProcess]) -> ServiceProcess:
    """A process that is carrying out a run."""

    async def holder() -> ServiceProcess | None:
        async with connected(dsn) as connection:
            cursor = await connection.execute(
                "SELECT s.data ->> 'runner' FROM events AS s"
                " WHERE s.type = 'run_started' AND s.data ->> 'job' = 'heartbeat' AND NOT EXISTS"
                " (SELECT FROM events AS o WHERE o.stream = s.stream AND o.type = 'run_finished')"
            )
            row = await cursor.fetchone()
        return next((service for service in services if row and f"-{service.pid}-" in row[0]), None)

    found = await eventually(holder, describe="a process is carrying out a run")
    assert found is not None
    return found


async def no_run_is_open(dsn: str) -> bool:
    """Whether every run that was started has ended."""
    return all(tick.outcomes for tick in await ticks(dsn))
