"""A job is changed or removed while ticks of its old schedule are still due."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from service import commands as do
from service.job_spec import JobSpec
from tests.api.client import running_service
from tests.support.outage import record_before_outage

if TYPE_CHECKING:
    from tests.api.client import Service

PATIENT = {"task": "token_monitor", "catch_up_seconds": 3_600}


async def outcomes(service: Service, status: str) -> list[Any]:
    found = await service.api.get("runs", job="watch", status=status, min_position=await service.head())
    return [item["reason"] for item in found.expect(200)["items"]]


@pytest.mark.parametrize(
    ("jobs", "how"),
    [({"watch": {**PATIENT, "cron": "0 0 1 1 *"}}, "rescheduled"), ({}, "removed")],
    ids=["rescheduled", "removed"],
)
async def test_ticks_that_could_still_run_are_not_missed_when_a_restart_ends_their_schedule(
    database: str, jobs: dict[str, Any], how: str
) -> None:
    """Nobody was there for ten minutes, of a job that ticks every minute and catches up for an hour."""
    definition = JobSpec.model_validate({**PATIENT, "every": "1m"}).definition()
    await record_before_outage(
        database, do.SetPolicy(), do.DefineJob(name="watch", source="settings", definition=definition)
    )
    async with running_service(database, jobs=jobs) as service:
        assert await outcomes(service, "skipped") == 10 * [f"schedule_ended: the job is being {how}"]
        assert await outcomes(service, "missed") == []
        position = (await service.api.get("events", type="run_skipped")).expect(200)["items"][0]["position"]
        told = (await service.api.get(f"explain/{position}")).expect(200)
        assert told["facts"]["reason"] == "schedule_ended"
        assert any("The job watch was" in reason["sentence"] for reason in told["reasons"])
