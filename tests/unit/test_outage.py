"""The log lines of an outage."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from eventstore import outage
from eventstore.outage import OutageLog
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSED = "connection refused"
STARTING = "the database system is starting up"


class Clock:
    seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outage, "monotonic", clock)
    return clock


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.DEBUG, "a.task")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def outages() -> OutageLog:
    return OutageLog(logging.getLogger("a.task"), "the reader")


async def test_each_reason_is_logged_once_and_so_is_the_end(
    clock: Clock, outages: OutageLog, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "STABLE_SECONDS", 0.01)
    outages.connected()
    for reason in (REFUSED, REFUSED, STARTING, REFUSED, STARTING):
        outages.failed(reason)
        clock.seconds += 2
    outages.connected()
    outages.connected()
    clock.seconds += 500
    await eventually(lambda: len(lines()) >= 3)
    assert lines() == [
        "the reader lost its connection: connection refused",
        "the reader is still not connected after 4.0 s (attempt 2): the database system is starting up",
        "the reader is connected again after 10.0 s (attempt 5)",
    ]
    outages.failed(REFUSED)
    assert lines()[3:] == ["the reader lost its connection: connection refused"]


def test_reason_is_logged_again_after_a_minute(
    clock: Clock, outages: OutageLog, lines: Callable[[], list[str]]
) -> None:
    for _ in range(61):
        outages.failed(REFUSED)
        clock.seconds += 2
    assert lines() == [
        "the reader lost its connection: connection refused",
        "the reader is still not connected after 60.0 s (attempt 30): connection refused",
        "the reader is still not connected after 120.0 s (attempt 60): connection refused",
    ]


async def test_connection_that_does_not_last_ends_no_outage(
    clock: Clock, outages: OutageLog, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    outages.failed(REFUSED)
    outages.connected()
    outages.failed(REFUSED)
    monkeypatch.setattr(outage, "STABLE_SECONDS", 0.01)
    clock.seconds += 3
    outages.connected()
    await eventually(lambda: len(lines()) >= 2)
    assert lines() == [
        "the reader lost its connection: connection refused",
        "the reader is connected again after 3.0 s (attempt 2)",
    ]
