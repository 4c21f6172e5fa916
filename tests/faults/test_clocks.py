"""Wrong or stepped clocks of a machine have no effect: only the database's clock counts."""

from __future__ import annotations

import json
import signal
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from eventstore import codec, log
from eventstore.events import OperationExpired, OperationRenewed, OperationStarted
from tests.support.components import connected
from tests.support.load import Load
from tests.support.log import whole_log
from tests.support.process import squad_up
from tests.support.stepped_clock import PROGRAM
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

RECOVERY_SECONDS = 5.0
"""The next round trip corrects the clock; a listener whose timeouts are wrong reconnects."""

CLAIM = {"action": "answer", "resources": {"emailId": "contested"}}
LONG_CLAIMS = {"SQUAD_CONFLICT_WINDOW_SECONDS": "600", "SQUAD_OPERATION_TIMEOUT_SECONDS": "900"}
"""Claims that outlast the test, but not a clock step of an hour."""


async def test_claims_do_not_expire_early_when_one_machines_clocks_step_by_an_hour(database: str) -> None:
    async with (
        squad_up(dsn=database, data=None, **LONG_CLAIMS) as correct,
        squad_up(dsn=database, data=None, program=PROGRAM, **LONG_CLAIMS) as stepped,
        connected(database) as connection,
    ):
        started_at = await log.clock(connection)
        status, claimed = await post(correct, "operations", agent="alice", **CLAIM)
        assert status == 201
        trial = Trial("clocks stepped by an hour", RECOVERY_SECONDS, Load([correct, stepped]))
        async with trial.running():
            with trial.fault_injection():
                stepped.send(signal.SIGUSR1)
                stepped.send(signal.SIGUSR2)
            await trial.wait_until_recovered(correct, stepped)
        assert await conflicting_operation(stepped) == claimed["id"]
        # The offset is also corrected without any write.
        stepped.send(signal.SIGUSR2)
        await eventually(lambda: check_reports(stepped, claimed["id"]), within_seconds=RECOVERY_SECONDS)
        await trial.verify(database)
        events = await whole_log(connection)
        assert started_at - timedelta(minutes=1) < events[0].recorded_at
        assert events[-1].recorded_at <= await log.clock(connection)
    assert_no_claim_expired_early(events)


async def conflicting_operation(service: ServiceProcess) -> str:
    """The id of the operation with which bob's claim conflicts."""
    status, answer = await post(service, "operations", agent="bob", **CLAIM)
    assert status == 409
    return str(answer["conflict"]["operation_id"])


async def check_reports(service: ServiceProcess, operation_id: str) -> bool:
    status, answer = await post(service, "operations/check", agent="bob", **CLAIM)
    assert status == 200
    return answer["conflict"] is not None and answer["conflict"]["operation_id"] == operation_id


def assert_no_claim_expired_early(events: Sequence[Recorded]) -> None:
    expires_at: dict[str, datetime] = {}
    for recorded in events:
        match event := codec.decode(recorded):
            case OperationStarted() | OperationRenewed():
                expires_at[event.operation_id] = event.expires_at
                assert event.expires_at - recorded.recorded_at < timedelta(hours=1)
            case OperationExpired():
                assert recorded.recorded_at >= expires_at[event.operation_id]


async def post(service: ServiceProcess, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with aiohttp.request("POST", f"{service.url}/api/v1/{path}", json=body) as response:
        return response.status, json.loads(await response.read())
