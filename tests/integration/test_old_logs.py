"""A log written by the first version of the software is read, folded and continued by the current one."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from eventstore import codec, log
from eventstore.events import RunFinished
from projections.jobs import JOBS
from projections.projector import Projector
from service import commands as do
from service.job_spec import JobSpec
from service.memory.draft import Draft
from service.memory.squad import Squad
from service.requests import Request, Ticket
from service.writing.batch import decide_batch
from tests.support.components import connected, running, running_listener, submit
from tests.support.jobs import running_job_process
from tests.support.log import LogWriter, new_id
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.recorded import Recorded

MINUTE = timedelta(minutes=1)

NEW_FIELDS = {
    "job_removed": ("source",),
    "run_started": ("operation_id",),
    "run_retried": ("operation_id",),
    "run_finished": ("answered",),
}


def first_version_of(recorded: Recorded) -> Recorded:
    """Return an event in its first schema version."""
    data: dict[str, Any] = orjson.loads(recorded.data)
    for name in NEW_FIELDS.get(recorded.type, ()):
        del data[name]
    if recorded.type == "job_defined":
        del data["definition"]["resources"]
    if data.get("reason") == "run_started":
        data["reason"] = "operation_started"
    return recorded._replace(schema_version=1, data=orjson.dumps(data).decode())


def define(name: str) -> do.DefineJob:
    spec = {"agent": "ann", "endpoint": "/work", "every": "1d", "tokens": 10, "retries": 1}
    whole = JobSpec.model_validate({**spec, "overlap": "allow_all"})
    return do.DefineJob(name=name, source="default", definition=whole.definition())


COMMANDS: tuple[do.AnyCommand, ...] = (
    do.SetPolicy(),
    do.StartOrchestrator(),
    do.RegisterAgent(name="ann", role="test"),
    define("kept"),
    define("removed"),
    do.RunJob(name="kept", runner="gone"),
    do.RunJob(name="removed", runner="gone"),
    do.RemoveJob(name="removed"),
)
"""Two jobs, each with a run; one of the jobs is removed while its run goes on."""


async def write_old_log(dsn: str) -> list[Recorded]:
    """Decide these commands, and store the events as the first version did."""
    async with connected(dsn) as connection:
        log_writer = LogWriter(connection)
        now = await log.clock(connection)
        loop = asyncio.get_running_loop()
        tickets = [Ticket(Request(item, "agent:ann", "x"), loop.create_future()) for item in COMMANDS]
        draft = Draft(Squad())
        batch = decide_batch(draft, tickets, {}, now=now - MINUTE, decided_at=now)
        [first, second] = [item for item in batch.recorded if item.type == "run_started"]
        for run, succeeded in ((first, True), (second, False)):
            end = do.EndAttempt(
                run_id=orjson.loads(run.data)["run_id"],
                runner="gone",
                attempt=1,
                succeeded=succeeded,
                report="so it went",
                answered=succeeded,
            )
            tickets.append(Ticket(Request(end, "system:scheduler", "x"), loop.create_future()))
        later = decide_batch(draft, tickets[-2:], {}, now=now - MINUTE, decided_at=now, ids=new_id)
        rows = []
        for item in [*batch.recorded, *later.recorded]:
            old = first_version_of(item)
            [row] = await log_writer.append(
                codec.decode(old),
                at=item.recorded_at,
                schema_version=1,
                data=old.data,
                actor=item.actor,
                caused_by=item.caused_by,
            )
            rows.append(row)
        return rows


async def test_old_log_is_folded_into_tables_and_state_and_can_be_continued(database: str) -> None:
    old = await write_old_log(database)
    assert {item.schema_version for item in old} == {1}
    async with (
        running_listener(database) as listener,
        running(Projector(database, "squad", listener.events).run()),
        running_job_process(database) as job_process,
    ):
        squad = job_process.writer.squad
        [kept] = squad.all(JOBS)
        assert (kept.name, kept.resources) == ("kept", None)
        # The old event does not say who removed the other job, so its default brings it back, as then.
        assert (await submit(job_process.writer, define("removed"))).refusal is None
        assert {row.name for row in squad.all(JOBS)} == {"kept", "removed"}
        [ended] = job_process.find_events(RunFinished)
        assert ended.answered
        await eventually(partial(projected_to_head, database))
    await assert_log_is_sound(database)
    assert await assert_tables_equal_fold(database) > 0
