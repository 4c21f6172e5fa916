"""What other rules would have allowed or refused, over HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from service.http import concurrency
from service.http.concurrency import ConcurrencyLimit
from service.http.problems import Problem
from service.http.v1 import whatif
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api, Service


async def _populate(api: Api) -> None:
    await api.post("budget/reservations", agent="ada", tokens=60_000)
    (await api.post("budget/reservations", agent="bob", tokens=60_000)).expect(429)
    claim = {"action": "respond", "resources": {"emailId": "e-1"}}
    (await api.post("operations", agent="ada", **claim)).expect(201)
    (await api.post("operations", agent="bob", **claim)).expect(409)


async def test_whatif_reports_what_would_have_been_allowed_and_appends_nothing(service: Service) -> None:
    await _populate(service.api)
    head = await service.head()
    found = (await service.api.post("whatif", daily_tokens=200_000)).expect(200)
    assert (found["different"], found["upto"], found["after"]) == (True, head, 0)
    assert found["reservations"] == {"refused_instead": 0, "allowed_instead": 1}
    assert found["tokens_allowed"] == 60_000
    [day] = found["days"]
    assert (day["agent"], day["allowed_instead"], day["tokens_allowed"]) == ("bob", 1, 60_000)
    [difference] = found["differences"]
    assert (difference["agent"], difference["recorded"], difference["instead"]) == (
        "bob",
        "refused",
        "allowed",
    )
    assert "acted differently" in found["caveats"][0]
    assert await service.head() == head


async def test_unchanged_rules_make_no_difference(api: Api) -> None:
    await _populate(api)
    found = (await api.post("whatif")).expect(200)
    assert (found["different"], found["days"], found["differences"], found["warnings"]) == (
        False,
        [],
        [],
        [],
    )
    assert found["requests"] == 4


async def test_every_rule_can_be_changed(api: Api) -> None:
    await _populate(api)
    found = (
        await api.post(
            "whatif",
            daily_tokens=50_000,
            agent_limits={"ada": None, "bob": 10},
            conflict_window_seconds=0.000001,
            operation_timeout_seconds=600,
            warning_percents=[1],
            since="2020-01-01T00:00:00Z",
            until="2100-01-01T00:00:00Z",
        )
    ).expect(200)
    assert found["refused_instead"] == 1
    assert found["claims"]["allowed_instead"] == 1


async def test_no_request_is_judged_when_until_is_before_the_first_event(api: Api) -> None:
    await _populate(api)
    found = (await api.post("whatif", daily_tokens=1, until="2020-01-01T00:00:00Z")).expect(200)
    assert (found["upto"], found["different"]) == (0, False)


async def test_other_requests_are_answered_while_a_history_is_judged(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whatif, "PAGE_POSITIONS", 1)
    await _populate(service.api)
    request = asyncio.create_task(service.api.post("whatif", daily_tokens=1))
    answers = 0
    while not request.done():
        (await service.api.get("/healthz")).expect(200)
        answers += 1
    (await request).expect(200)
    assert answers > 1


async def test_concurrency_limit_queues_some_requests_and_rejects_the_rest() -> None:
    limit, done = ConcurrencyLimit(), asyncio.Event()
    entered = 0

    async def enter() -> None:
        nonlocal entered
        async with limit:
            entered += 1
            await done.wait()

    tasks = [
        asyncio.create_task(enter()) for _ in range(concurrency.MAX_CONCURRENT + concurrency.MAX_WAITING)
    ]
    await eventually(lambda: entered == concurrency.MAX_CONCURRENT)
    with pytest.raises(Problem) as refused:
        async with limit:
            pass
    assert (refused.value.code, refused.value.body["retry_after_seconds"]) == ("queue_full", 5)
    tasks.pop().cancel()
    late = asyncio.create_task(enter())
    done.set()
    await asyncio.gather(*tasks, late)
    assert entered == concurrency.MAX_CONCURRENT + concurrency.MAX_WAITING


async def test_concurrent_requests_are_all_answered(api: Api) -> None:
    await _populate(api)
    requests = [
        api.post("whatif", daily_tokens=1)
        for _ in range(concurrency.MAX_CONCURRENT + concurrency.MAX_WAITING)
    ]
    first, *others = [answer.expect(200) for answer in await asyncio.gather(*requests)]
    assert all(other == first for other in others)
