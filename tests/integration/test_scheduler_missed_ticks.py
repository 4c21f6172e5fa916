"""No process was running for ten minutes: which ticks still run, and which are recorded as missed.

Only the log says that time has passed: the events before the break were recorded ten minutes ago.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from eventstore.events import RunFinished, RunMissed, RunRetried
from service import commands as do
from service.decide.ticks import MAX_MISSED_PER_CLAIM
from service.job_spec import JobSpec
from tests.support.agents import answers
from tests.support.jobs import running_job_process
from tests.support.outage import record_before_outage
from tests.support.verify import assert_log_is_sound
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.agents import Agents
    from tests.support.jobs import JobProcess


def job(name: str, **spec: object) -> do.DefineJob:
    whole = JobSpec.model_validate({"agent": "worker", "endpoint": f"/{name}", **spec})
    return do.DefineJob(name=name, source="api", definition=whole.definition())


BEFORE = (
    do.SetPolicy(daily_tokens=100_000),
    do.StartOrchestrator(),
    do.RegisterAgent(name="worker", role="test"),
)


def statuses(job_process: JobProcess, name: str) -> Counter[str]:
    return Counter(row.status for row in job_process.runs(name))


async def test_ticks_within_the_catch_up_time_run_and_older_ones_are_recorded_as_missed(
    agents: Agents, database: str
) -> None:
    since = await record_before_outage(
        database,
        *BEFORE,
        job("every_minute", every="1m"),
        job("patient", every="1m", catch_up_seconds=3_600, overlap="allow_all"),
        job("impatient", every="1m", catch_up_seconds=1),
        job("every_10_s", every="10s", overlap="buffer_one"),
        job("yearly", cron="0 0 29 2 *"),
    )
    async with running_job_process(database, agents.url) as job_process:
        await eventually(lambda: statuses(job_process, "patient")["succeeded"] >= 10)
        await eventually(lambda: statuses(job_process, "every_10_s").total() >= 60)
        await eventually(lambda: statuses(job_process, "impatient").total() >= 10)
        for name, minutes in (("every_minute", 1), ("patient", 1), ("impatient", 1), ("every_10_s", 1 / 6)):
            # A tick that was buffered runs after ticks that were skipped meanwhile.
            rows = sorted(job_process.runs(name), key=lambda row: row.tick)
            step = timedelta(minutes=minutes)
            assert rows[0].tick - since <= step
            assert {later.tick - row.tick for row, later in pairwise(rows)} == {step}
        assert statuses(job_process, "patient").keys() == {"succeeded"}
        for row in job_process.runs("every_minute"):
            decided_at = row.started_at or row.finished_at
            assert decided_at is not None
            assert (row.status == "missed") == (decided_at - row.tick > timedelta(seconds=60)), row
        # A tick that is due at this very moment is not late.
        assert statuses(job_process, "impatient")["missed"] >= 9
        late = statuses(job_process, "every_10_s")
        # How many multiples of ten seconds an interval has depends on where it starts.
        recorded_at = max(
            row.finished_at
            for row in job_process.runs("every_10_s")
            if row.status == "missed" and row.finished_at
        )
        count = (recorded_at - since - timedelta(seconds=60)) // timedelta(seconds=10)
        assert late["missed"] in (count, count + 1)
        assert not job_process.runs("yearly")
    await assert_log_is_sound(database)


async def test_thousands_of_missed_ticks_are_recorded_a_hundred_at_a_time(
    agents: Agents, database: str
) -> None:
    since = await record_before_outage(
        database, *BEFORE, job("often", every="200ms", overlap="skip", catch_up_seconds=60)
    )
    async with running_job_process(database, agents.url) as job_process:
        await eventually(lambda: any(row.status == "succeeded" for row in job_process.runs("often")))
        rows = job_process.runs("often")
        # Their number depends on how long the process took to start and to record the first of them.
        count = next(number for number, row in enumerate(rows) if row.status != "missed")
        assert count >= 540 * 5 - 10
        assert all(row.status != "missed" for row in rows[count:])
        ticks = [row.tick for row in rows[: count + 1]]
        assert timedelta(0) < ticks[0] - since <= timedelta(milliseconds=200)
        assert {later - tick for tick, later in pairwise(ticks)} == {timedelta(milliseconds=200)}
        recorded = [item for item in job_process.log if item.type == RunMissed.type][:count]
        for item, row in zip(recorded, rows[:count], strict=True):
            assert item.recorded_at - row.tick > timedelta(seconds=60)
        assert max(Counter(item.recorded_at for item in recorded).values()) == MAX_MISSED_PER_CLAIM
    await assert_log_is_sound(database)


async def test_interrupted_run_is_retried_when_an_attempt_is_left_and_lost_otherwise(
    agents: Agents, database: str
) -> None:
    agents.on("/again", answers({}))
    await record_before_outage(
        database,
        *BEFORE,
        job("again", every="300d", retries=1),
        job("once", every="300d"),
        do.RunJob(name="again", runner="gone"),
        do.RunJob(name="once", runner="gone"),
    )
    async with running_job_process(database, agents.url) as job_process:
        await eventually(lambda: len(job_process.find_events(RunFinished)) == 2)
        assert [item.outcome for item in job_process.find_events(RunFinished, job="again")] == ["succeeded"]
        assert [item.outcome for item in job_process.find_events(RunFinished, job="once")] == ["lost"]
        assert [item.lease_ran_out for item in job_process.find_events(RunRetried)] == [True]
    assert [call.path for call in agents.calls] == ["/again"]
