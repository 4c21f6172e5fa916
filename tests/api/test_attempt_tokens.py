"""The fencing tokens that an agent is sent with the attempts of one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.client import running_service
from tests.support.agents import Agents, answers
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.client import Api, Service


@pytest.fixture
async def service(database: str, agents: Agents) -> AsyncIterator[Service]:
    async with running_service(
        database, agents_url=agents.url, agents={"worker": {"role": "test"}}
    ) as running:
        yield running


async def test_a_retry_sends_a_greater_token_when_the_job_claims_no_resources(
    api: Api, agents: Agents
) -> None:
    agents.on("/poll", answers({}, 503), answers({}))
    job = {"agent": "worker", "endpoint": "/poll", "every": "300d", "retries": 1}
    (await api.put("jobs/poll", **job)).expect(200)
    run = (await api.post("jobs/poll/run")).expect(202)

    await eventually(lambda: len(agents.calls) == 2)
    [retried] = (await api.get("events", type="run_retried")).expect(200)["items"]
    tokens = [call.payload["fencing_token"] for call in agents.calls]
    assert tokens == [run["position"], retried["position"]]
    assert [call.payload["attempt"] for call in agents.calls] == [1, 2]
