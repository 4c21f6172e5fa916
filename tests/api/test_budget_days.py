"""The list of budget days."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from service import commands as do
from tests.api.client import running_service
from tests.support.outage import record_before_outage
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api

DAY = timedelta(days=1)
DAYS_AGO = 4


@pytest.fixture
async def first_day(database: str) -> date:
    """The day of a squad that used and reserved tokens some days ago, and none since."""
    since = await record_before_outage(
        database,
        do.SetPolicy(daily_tokens=1_000),
        do.RecordUsage(agent="ada", tokens=300),
        do.RecordUsage(agent="bob", tokens=20),
        do.ReserveTokens(agent="bob", tokens=100),
        away=DAYS_AGO * DAY,
    )
    return since.date()


async def test_days_are_listed_with_what_each_agent_used(database: str, first_day: date) -> None:
    async with running_service(database, reset_hour=0) as service:
        today = await _open_day(service.api)
        used = await service.api.post("budget/usage", agent="ada", tokens=7)
        [first, *_, last] = await _days(service.api, min_position=used.expect(201)["position"])
    assert (first["day"], first["total"], first["used"]) == (str(first_day), 1_000, 320)
    # The reservation has expired meanwhile.
    assert first["agents"] == {"ada": {"used": 300, "reserved": 0}, "bob": {"used": 20, "reserved": 0}}
    assert first["closed_at"] >= first["ends_at"] > first["starts_at"]
    assert (last["day"], last["used"], last["closed_at"]) == (today, 7, None)
    assert last["agents"] == {"ada": {"used": 7, "reserved": 0}}


async def test_days_are_listed_in_either_order_page_by_page_and_between_dates(
    database: str, first_day: date
) -> None:
    async with running_service(database, reset_hour=0) as service:
        await _open_day(service.api)
        whole = [item["day"] for item in await _days(service.api)]
        assert whole == sorted(set(whole))
        assert len(whole) >= 2
        for order, expected in (("asc", whole), ("desc", whole[::-1])):
            page = (await service.api.get("budget/days", limit=1, order=order)).expect(200)
            assert ([item["day"] for item in page["items"]], page["next"]) == (expected[:1], expected[0])
            rest = await _days(service.api, order=order, after=page["next"])
            assert [item["day"] for item in rest] == expected[1:]
        later = await _days(service.api, since=first_day + DAY)
        assert [item["day"] for item in later] == whole[1:]
        earlier = await _days(service.api, until=first_day + DAY)
        assert [item["day"] for item in earlier] == whole[:1]


async def test_parameters_that_are_no_dates_are_refused(api: Api) -> None:
    for wrong in ("yesterday", 0, "2026-02-30", "2026-1-31", "2026-01-31T00:00:00Z", ""):
        for name in ("since", "until", "after"):
            (await api.get("budget/days", **{name: wrong})).expect(422, "validation_failed")
    for query in ({"limit": 367}, {"order": "newest"}):
        (await api.get("budget/days", **query)).expect(422, "validation_failed")


async def _days(api: Api, **query: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.get("budget/days", **query)).expect(200)["items"]
    return found


async def _open_day(api: Api) -> str:
    """Wait until the day of the outage is closed; return the present one."""

    async def is_open() -> str:
        last = (await _days(api, order="desc", limit=1))[0]
        return str(last["day"]) if last["used"] == last["reserved"] == 0 else ""

    return await eventually(is_open)
