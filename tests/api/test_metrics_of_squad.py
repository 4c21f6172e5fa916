"""Metrics of what the squad has: paused jobs and keys that expire; and of the software's version."""

from __future__ import annotations

from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from tests.api.client import running_service
from tests.api.test_metrics import scrape
from tests.support.agents import answers, running_agents
from tests.support.keys import make_key, revoke_key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api, Service

DAY = timedelta(days=1).total_seconds()


async def paused_jobs(api: Api) -> float:
    return (await scrape(api))["squad_jobs_paused"]


async def test_paused_jobs_are_counted_when_they_are_enabled(service: Service) -> None:
    api = service.api
    await api.put("agents/worker", role="test")
    for name, enabled in (("one", True), ("two", True), ("disabled", False)):
        spec = {"agent": "worker", "endpoint": "/x", "every": "300d", "enabled": enabled}
        (await api.put(f"jobs/{name}", **spec)).expect(200)
    assert await paused_jobs(api) == 0
    for name in ("one", "two", "disabled"):
        (await api.post(f"jobs/{name}/pause")).expect(200)
    assert await paused_jobs(api) == 2
    (await api.post("jobs/one/resume")).expect(200)
    (await api.delete("jobs/two")).expect(200)
    assert await paused_jobs(api) == 0


async def test_job_is_counted_as_paused_when_a_failed_run_pauses_it(database: str) -> None:
    async with (
        running_agents() as agents,
        running_service(database, agents_url=agents.url, agents={"worker": {"role": "test"}}) as service,
    ):
        agents.on("/bad", answers({}, status=400))
        spec = {"agent": "worker", "endpoint": "/bad", "every": "300d", "pause_on_failure": True}
        (await service.api.put("jobs/bad", **spec)).expect(200)
        (await service.api.post("jobs/bad/run")).expect(202)

        async def counted() -> bool:
            return await paused_jobs(service.api) == 1

        await eventually(counted)


async def test_next_expiry_of_a_key_is_shown_when_a_key_expires(database: str) -> None:
    auditor = await make_key(database, "auditor")
    async with running_service(database) as service:
        api = service.api.with_key(auditor.text)

        async def days_left() -> float | None:
            seconds = (await scrape(api)).get("squad_next_key_expiry_seconds")
            return None if seconds is None else seconds / DAY

        async def soonest(days: float | None) -> bool:
            return await days_left() == (None if days is None else pytest.approx(days, abs=0.1))

        assert await days_left() is None
        keys = {days: await make_key(database, expires_days=days) for days in (9, 3, 30)}
        await eventually(lambda: soonest(3))
        await revoke_key(database, keys[3])
        await eventually(lambda: soonest(9))
        for days in (9, 30):
            await revoke_key(database, keys[days])
        await eventually(lambda: soonest(None))


async def test_version_is_a_label_of_build_info(service: Service) -> None:
    assert (await scrape(service.api))[f"squad_build_info{{{version('squad-orchestrator')}}}"] == 1
