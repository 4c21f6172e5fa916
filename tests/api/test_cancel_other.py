"""A job whose next tick replaces the run in progress, unless the next run would be refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.client import running_service
from tests.support.agents import Agents, answers, when
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.client import Api, Service


@pytest.fixture
async def service(database: str, agents: Agents) -> AsyncIterator[Service]:
    async with running_service(
        database, agents_url=agents.url, agents={"worker": {"role": "test"}}, daily_tokens=100
    ) as running:
        yield running


async def runs(api: Api, status: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.get("runs", status=status)).expect(200)["items"]
    return found


async def test_a_run_goes_on_when_the_tokens_do_not_suffice_for_the_one_that_would_replace_it(
    api: Api, agents: Agents
) -> None:
    enough = asyncio.Event()
    agents.on("/poll", when(enough, answers({"tokens_used": 10})))
    job = {"agent": "worker", "endpoint": "/poll", "tokens": 60, "overlap": "cancel_other"}
    (await api.put("jobs/poll", every="1s", **job)).expect(200)
    await eventually(lambda: agents.calls)
    (await api.post("budget/usage", agent="worker", tokens=50)).expect(201)
    skipped, *_ = await eventually(lambda: runs(api, "skipped"))
    too_few = "60 tokens are needed, 50 remain, including what a cancellation would release"
    assert skipped["reason"] == f"budget: {too_few}"
    [running] = await runs(api, "running")
    enough.set()
    succeeded, *_ = await eventually(lambda: runs(api, "succeeded"))
    assert succeeded["id"] == running["id"]
