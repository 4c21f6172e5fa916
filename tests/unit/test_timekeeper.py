"""Whoever keeps time says so where it stands still."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from service.clock import DatabaseClock
from service.timekeeper import keep_time
from tests.support.wait import eventually
from tests.unit.support import START, given

if TYPE_CHECKING:
    from datetime import datetime

    import pytest

    from service.squad import Squad
    from service.writer import Writer


class _Clock(DatabaseClock):
    """Shows what it is set to."""

    shows = START

    def now(self) -> datetime:
        return self.shows


class _Reader:
    """A writer that is looked at and asked for nothing."""

    ready = True
    looks = 0

    def __init__(self, squad: Squad) -> None:
        self._squad = squad

    @property
    def squad(self) -> Squad:
        self.looks += 1
        return self._squad


async def test_a_standstill_is_told_of_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.timekeeper.CLOCK_STEP", timedelta(0))
    caplog.set_level(logging.INFO)
    reader, clock = _Reader(given().squad), _Clock()
    keeping = asyncio.create_task(keep_time(cast("Writer", reader), clock))
    said: list[list[str]] = []
    for back in (0, 4, 3_600, 3_599, 1, 0):
        clock.shows = START - timedelta(seconds=back)
        reader.looks = 0
        await eventually(lambda: reader.looks > 20)
        said.append([record.getMessage() for record in caplog.records])
        caplog.clear()
    keeping.cancel()
    [told] = said.pop(2)
    assert told.startswith("time stands still for 3600 s: ")
    assert said == [[], [], [], [], ["time goes on"]]
