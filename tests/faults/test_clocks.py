"""Clocks of a machine that are wrong, or are set: only the database's clock decides anything."""

from __future__ import annotations

import json
import signal
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from eventstore import codec, log
from eventstore.events import OperationExpired, OperationRenewed, OperationStarted
from tests.support.load import Load
from tests.support.log import whole_log
from tests.support.parts import connected
from tests.support.process import squad_up
from tests.support.stepped_clock import PROGRAM
from tests.support.trial import Trial
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded
    from tests.support.process import ServiceProcess

pytestmark = pytest.mark.faults

AFTER_A_STEP_SECONDS = 5.0
"""The next round trip puts it right; a listener that lost count of the seconds connects again."""

CLAIM = {"action": "answer", "resources": {"emailId": "contested"}}
LONG = {"SQUAD_CONFLICT_WINDOW_SECONDS": "600", "SQUAD_OPERATION_TIMEOUT_SECONDS": "900"}
"""A claim that holds for as long as the test lasts, and not for an hour."""


async def test_clocks_stepped_by_an_hour_on_one_of_two_machines(database: str) -> None:
    async with (
        squad_up(dsn=database, data=None, **LONG) as right,
        squad_up(dsn=database, data=None, program=PROGRAM, **LONG) as wrong,
        connected(database) as connection,
    ):
        begun = await log.clock(connection)
        status, claimed = await post(right, "operations", agent="alice", **CLAIM)
        assert status == 201
        trial = Trial("clocks stepped by an hour", AFTER_A_STEP_SECONDS, Load([right, wrong]))
        async with trial.running():
            with trial.cause():
                wrong.send(signal.SIGUSR1)
                wrong.send(signal.SIGUSR2)
            await trial.well(right, wrong)
        assert await refused_by(wrong) == claimed["id"]
        # Also where nothing is written that would tell it the time.
        wrong.send(signal.SIGUSR2)
        await eventually(lambda: checked_by(wrong, claimed["id"]), within_seconds=AFTER_A_STEP_SECONDS)
        await trial.judge(database)
        events = await whole_log(connection)
        assert begun - timedelta(minutes=1) < events[0].recorded_at
        assert events[-1].recorded_at <= await log.clock(connection)
    assert_nothing_ended_early(events)


async def refused_by(service: ServiceProcess) -> str:
    """Whose claim is in bob's way."""
    status, answer = await post(service, "operations", agent="bob", **CLAIM)
    assert status == 409
    return str(answer["conflict"]["operation_id"])


async def checked_by(service: ServiceProcess, operation_id: str) -> bool:
    status, answer = await post(service, "operations/check", agent="bob", **CLAIM)
    assert status == 200
    return answer["conflict"] is not None and answer["conflict"]["operation_id"] == operation_id


def assert_nothing_ended_early(events: Sequence[Recorded]) -> None:
    until: dict[str, datetime] = {}
    for recorded in events:
        match event := codec.decode(recorded):
            case OperationStarted() | OperationRenewed():
                until[event.operation_id] = event.expires_at
                assert event.expires_at - recorded.recorded_at < timedelta(hours=1)
            case OperationExpired():
                assert recorded.recorded_at >= until[event.operation_id]


async def post(service: ServiceProcess, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with aiohttp.request("POST", f"{service.url}/api/v1/{path}", json=body) as response:
        return response.status, json.loads(await response.read())
