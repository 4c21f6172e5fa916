"""Three processes, one database, a job every second, one process killed with -9: no tick lost, none twice.

`SQUAD_TEST_TICKS=60` makes it a minute instead of the twenty seconds of a test run.
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
from tests.support.parts import connected
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
    """What the log has of one second."""

    tick: datetime
    runs: int
    outcomes: list[str] | None


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    async with running_agents() as running:
        # Long enough that a process which is killed has a run under way, as a rule.
        running.on("/heartbeat", after(0.8))
        yield running


async def ticks(dsn: str) -> list[Tick]:
    """Every second from the first tick to the last, with what became of it."""
    async with connected(dsn) as connection:
        cursor = await connection.execute(OUTCOMES.encode())
        return [Tick(*row) for row in await cursor.fetchall()]


async def test_every_tick_has_one_run_and_one_outcome_though_a_process_is_killed(
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
                    # A run that waits for its lease to run out must not stand in the next ones' way.
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
        killed = await one_with_a_run(database, services)
        await killed.kill()
        await eventually(lambda: finished(TICKS), within_seconds=TICKS + 20)
        # What the dead process held is taken up once its lease has run out.
        await eventually(lambda: nothing_runs(database), within_seconds=30)
        for service in services:
            if service is not killed:
                assert await service.stop() == 0
    found = await ticks(database)
    assert {later.tick - tick.tick for tick, later in pairwise(found)} == {timedelta(seconds=1)}
    assert [tick for tick in found if tick.runs != 1 or tick.outcomes != ["succeeded"]] == []
    retried = [call for call in agents.calls if call.payload["attempt"] > 1]
    print(f"{len(found)} ticks, {len(agents.calls)} calls, {len(retried)} taken up after the kill")
    assert retried
    attempts = {(call.payload["run_id"], call.payload["attempt"]) for call in agents.calls}
    assert len(attempts) == len(agents.calls), "an attempt was made twice"
    await assert_log_is_sound(database)
    if await projected_to_head(database):
        assert await assert_tables_equal_fold(database) > 0


async def one_with_a_run(dsn: str, services: list[ServiceProcess]) -> ServiceProcess:
    """A process that carries out a run at this moment."""

    async def holder() -> ServiceProcess | None:
        async with connected(dsn) as connection:
            cursor = await connection.execute(
                "SELECT s.data ->> 'runner' FROM events AS s"
                " WHERE s.type = 'run_started' AND s.data ->> 'job' = 'heartbeat' AND NOT EXISTS"
                " (SELECT FROM events AS o WHERE o.stream = s.stream AND o.type = 'run_finished')"
            )
            row = await cursor.fetchone()
        return next((service for service in services if row and f"-{service.pid}-" in row[0]), None)

    found = await eventually(holder, describe="a process carries out a run")
    assert found is not None
    return found


async def nothing_runs(dsn: str) -> bool:
    """Whether every run that began has ended."""
    return all(tick.outcomes for tick in await ticks(dsn))
