"""Two hundred jobs that are due at the same second run concurrently.

Their delays are printed, not checked: `pytest -s tests/e2e/test_many_jobs.py`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import datetime
from statistics import quantiles

from tests.support.agents import after, running_agents
from tests.support.components import connected
from tests.support.process import squad_up
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

JOBS = 200
EVERY_SECONDS = 4
ROUNDS = 3


async def test_two_hundred_jobs_due_at_once_run_concurrently(database: str) -> None:
    names = [f"agent-{number:03}" for number in range(JOBS)]
    async with running_agents() as agents:
        for name in names:
            agents.on(f"/{name}", after(1.0))
        roster = {name: {"role": "test", "url": agents.url} for name in names}
        jobs = {
            name: {"agent": name, "endpoint": f"/{name}", "every": f"{EVERY_SECONDS}s"} for name in names
        }
        settings = {"SQUAD_AGENTS": json.dumps(roster), "SQUAD_JOBS": json.dumps(jobs)}
        async with squad_up(dsn=database, data=None, **settings) as service:
            await eventually(
                lambda: len(agents.calls) >= ROUNDS * JOBS,
                within_seconds=(ROUNDS + 2) * EVERY_SECONDS + 10,
            )
            await eventually(lambda: not agents.in_flight.total())
            assert await service.stop() == 0
    rounds: defaultdict[datetime, list[float]] = defaultdict(list)
    for call in agents.calls:
        tick = datetime.fromisoformat(call.payload["tick"])
        rounds[tick].append((call.at - tick).total_seconds() * 1000)
    for tick, delays in sorted(rounds.items()):
        print(f"{tick:%H:%M:%S} {len(delays)} calls arrived {_spread(delays)} after their tick")
    async with connected(database) as connection:
        cursor = await connection.execute(
            "SELECT 1000 * extract(epoch FROM recorded_at - (data ->> 'tick')::timestamptz)::float8"
            " FROM events WHERE type = 'run_started'"
        )
        claimed = [delay for (delay,) in await cursor.fetchall()]
    print(f"{len(claimed)} ticks were claimed {_spread(claimed)} after they were due")
    # No call waited for another one.
    assert agents.max_in_flight[""] == JOBS
    for name in names:
        assert agents.max_in_flight[f"/{name}"] == 1
    runs = {call.payload["run_id"] for call in agents.calls}
    assert len(runs) == len(agents.calls)
    events = await assert_log_is_sound(database)
    assert sum(item.type == "run_skipped" for item in events) == 0


def _spread(milliseconds: list[float]) -> str:
    cuts = quantiles(milliseconds, n=100)
    return f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms"
