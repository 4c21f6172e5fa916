"""The squad as it was at any position or time, over HTTP."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.history import fill
from eventstore import log
from service import reading
from service.history import folding, snapshots
from service.history import time_travel as history
from service.http import chunks
from service.http.context import MAX_CONCURRENT_LOOK_BACKS
from service.http.v1 import state
from service.memory.squad import Squad
from tests.api.client import running_service
from tests.support.components import connected
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api, Service

EVENTS = 12_000
LISTED = ("agents", "operations", "reservations", "jobs", "runs", "tasks", "emails")
YEARLY = {"task": "conflict_check", "cron": "0 0 1 1 *"}


async def _answers(api: Api) -> dict[str, Any]:
    """What the API's other reads answer now, under the names that the state uses."""

    async def items(path: str, **query: object) -> list[dict[str, Any]]:
        return list((await api.get(path, limit=1000, **query)).expect(200)["items"])

    jobs = await items("jobs")
    for job in jobs:
        del job["last_runs"]
    return {
        "agents": await items("agents"),
        "budget": (await api.get("budget")).expect(200),
        "operations": await items("operations", state="active"),
        "tasks": await items("tasks", status="new,in_progress"),
        "emails": await items("emails", status="unread,classified,draft_created"),
        "jobs": jobs,
        "runs": await items("runs", status="running"),
    }


async def _answers_at_head(service: Service) -> tuple[int, dict[str, Any]]:
    """The head, and the answers while the log ended there."""
    while True:
        before, answers = await service.head(), await _answers(service.api)
        if await service.head() == before:
            return before, answers


async def _make_changes(api: Api) -> Any:
    """Make one change after another, and yield after each."""
    yield await api.put("agents/ada", role="writer", priority=3)
    claim = (await api.post("operations", agent="ada", action="respond", resources={"emailId": "e-1"})).body
    yield
    held = (await api.post("budget/reservations", agent="ada", tokens=500)).expect(201)
    await api.put("budget", daily_tokens=5_000, agent_limits={"ada": 1_000, "bob": 0})
    yield
    task = (await api.post("tasks", title="look", assigned_agent="ada", priority="high")).expect(201)
    email = await api.post(
        "emails", gmail_message_id="g-1", from_email="a@example.org", payload={"deep": [{"n": None}, 1.5]}
    )
    yield
    await api.post(f"operations/{claim['id']}/heartbeat")
    await api.post(f"budget/reservations/{held['id']}/settle", tokens_used=450)
    yield await api.patch(f"tasks/{task['id']}", status="completed")
    yield await api.patch(f"emails/{email.body['id']}", status="sent", category="inquiry")
    yield await api.post(f"operations/{claim['id']}/finish", outcome="succeeded", tokens_used=70)
    yield await api.put("jobs/yearly", **YEARLY)
    yield await api.post("jobs/yearly/pause", note="holidays")
    yield await api.patch(f"tasks/{task['id']}", status="in_progress")
    yield await api.patch(f"emails/{email.body['id']}", status="classified")
    yield await api.post("/api/squad", action="orchestrator-shutdown")


async def test_past_state_equals_what_the_api_answered_then(service: Service) -> None:
    api = service.api
    answers_at: dict[int, dict[str, Any]] = {}
    async for _ in _make_changes(api):
        position, answers = await _answers_at_head(service)
        answers_at[position] = answers
    assert len(answers_at) > 10
    for position, then in answers_at.items():
        body = (await api.get("state", at=position)).expect(200)
        assert {name: body[name] for name in then} == then, position
        recorded = (await api.get(f"events/{position}")).expect(200)
        assert (body["position"], body["recorded_at"]) == (position, recorded["recorded_at"])
        assert body["moment"] == recorded["recorded_at"]
        by_time = (await api.get("state", at=recorded["recorded_at"])).expect(200)
        assert by_time == (await api.get("state", at=by_time["position"])).expect(200)


async def test_state_includes_reservations_orchestrator_and_policy(api: Api) -> None:
    held = (await api.post("budget/reservations", agent="ada", tokens=500)).expect(201)
    body = (await api.get("state", min_position=held["position"])).expect(200)
    [reservation] = body["reservations"]
    assert (reservation["id"], reservation["tokens"]) == (held["id"], 500)
    assert body["orchestrator"]["running"] is True
    assert (body["policy"]["daily_tokens"], body["policy"]["set_by"]) == (100_000, "system:service")
    await api.post("/api/squad", action="orchestrator-shutdown")
    assert (await api.get("state")).body["orchestrator"]["running"] is False
    assert (await api.get("state", at=body["position"])).body["orchestrator"]["running"] is True


async def test_state_is_current_by_default(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.05)
    api = service.api
    position = (await api.post("messages", from_agent="ada", message="hello")).expect(201)["position"]
    now = (await api.get("state", min_position=position)).expect(200)
    assert now["position"] >= position
    head = (await api.get("state", at=now["position"])).expect(200)
    assert {**head, "moment": now["moment"]} == now
    assert now["moment"] >= now["recorded_at"]
    (await api.get("state", min_position=now["position"] + 10_000)).expect(504, "not_yet")


async def test_current_state_does_not_copy_the_squad(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 200,000 active rows, a copy takes 40 milliseconds, during which no request is served."""
    monkeypatch.setattr(Squad, "copy", lambda _: pytest.fail("the squad was copied"))
    assert (await api.get("state")).expect(200)["position"] > 0


async def test_long_state_is_sent_in_chunks(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, an answer of a hundred megabytes would exceed what may wait to be sent."""
    whole = await api.get("state", at=1)
    monkeypatch.setattr(chunks, "PAGE_BYTES", 100)
    chunked = await api.get("state", at=1)
    assert chunked.expect(200) == whole.expect(200)
    assert "Content-Length" in whole.headers
    assert chunked.headers["Transfer-Encoding"] == "chunked"
    assert chunked.headers.keys() >= whole.headers.keys() - {"Content-Length"}


async def test_state_includes_task_that_another_process_reopened(database: str) -> None:
    async with running_service(database) as one, running_service(database) as other:
        task = (await one.api.post("tasks", title="look", status="completed")).expect(201)
        await other.api.get("state", min_position=task["position"])
        again = (await one.api.patch(f"tasks/{task['id']}", status="new")).expect(200)
        body = (await other.api.get("state", min_position=again["position"])).expect(200)
        assert [row["id"] for row in body["tasks"]] == [task["id"]]


async def test_state_before_the_first_event_is_empty(api: Api) -> None:
    first = datetime.fromisoformat((await api.get("events/1")).expect(200)["recorded_at"])
    nothing = (await api.get("state", at=0)).expect(200)
    assert nothing == {
        "position": 0,
        "recorded_at": None,
        "moment": None,
        "orchestrator": None,
        "policy": None,
        "budget": None,
        **{name: [] for name in LISTED},
    }
    before = (first - timedelta(microseconds=1)).isoformat().replace("+00:00", "Z")
    assert (await api.get("state", at=before)).body == {**nothing, "moment": before}


async def test_state_beyond_the_end_of_the_log_is_not_found(service: Service) -> None:
    head = await service.head()
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    body = (await service.api.get("state", at=head + 1_000)).expect(404, "not_found")
    assert "ends at position" in body["detail"]
    body = (await service.api.get("state", at=f"{tomorrow:%Y-%m-%dT%H:%M:%SZ}")).expect(404, "not_found")
    assert "is in the future" in body["detail"]
    (await service.api.get("state", at=2**63 - 1)).expect(404, "not_found")


async def test_invalid_position_or_time_is_rejected(api: Api) -> None:
    for at in (
        *("", "-1", "+1", "1.0", "1e3", "1_000", "٣", "9" * 19, "9" * 5_000, "12 "),
        *("2026-01-31", "2026-01-31T25:00:00Z", "2026-01-31T09:00:00", "0001-01-01T00:00:00Z"),
        *("yesterday", "null", "\x00"),
    ):
        fault = (await api.get("state", at=at)).expect(422, "validation_failed")
        assert fault["errors"][0]["field"] == "at", at
        assert fault["errors"][0]["message"].startswith("must be a position, or a time: "), at
    (await api.get("state", when=3)).expect(422, "validation_failed")


# A long log ---------------------------------------------------------------------------------------------


@pytest.fixture
async def long_log(empty_database: str) -> str:
    """The DSN of a squad with a long log."""
    async for _ in fill(empty_database, "squad", EVENTS):
        pass
    return empty_database


async def test_other_requests_are_answered_while_a_past_state_is_folded(
    long_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "INTERVAL_EVENTS", 10**9)
    async with running_service(long_log) as service:
        request = asyncio.create_task(service.api.get("state", at=EVENTS - 1))
        answered = 0
        while not request.done():
            (await service.api.get("/healthz")).expect(200)
            answered += 1
        assert (await request).expect(200)["position"] == EVENTS - 1
        assert answered > 5


async def test_fold_that_timed_out_is_continued_by_the_next_request(
    long_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.page_size.INITIAL_EVENTS", 2_500)
    async with running_service(long_log) as service, connected(long_log) as connection:
        await connection.execute("TRUNCATE snapshots")
        monkeypatch.setattr(state, "TIMEOUT_SECONDS", 0.001)
        body = (await service.api.get("state", at=6_000)).expect(503, "took_too_long")
        assert "folded up to position 2500 of 6000" in body["detail"]
        assert body["retry_after_seconds"] == 1
        (await service.api.get("state", at=6_000)).expect(503, "took_too_long")
        assert (await service.api.get("state", at=6_000)).expect(200)["position"] == 6_000
        assert {2_500, 5_000} <= set(await snapshots.positions(connection))


async def test_number_of_concurrent_folds_is_limited(
    long_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    concurrent, max_concurrent = 0, 0
    squad_at = history.squad_at

    async def count_and_fold(*arguments: Any, **named: Any) -> Any:
        nonlocal concurrent, max_concurrent
        concurrent, max_concurrent = concurrent + 1, max(max_concurrent, concurrent + 1)
        try:
            return await squad_at(*arguments, **named)
        finally:
            concurrent -= 1

    monkeypatch.setattr(state, "squad_at", count_and_fold)
    async with running_service(long_log) as service:
        answers = await asyncio.gather(*(service.api.get("state", at=4_900) for _ in range(8)))
        assert len({answer.expect(200)["position"] for answer in answers}) == 1
        assert max_concurrent == MAX_CONCURRENT_LOOK_BACKS


async def test_request_that_waits_too_long_for_other_folds_is_rejected(
    long_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_continue, waiting = asyncio.Event(), []

    async def fold_slowly(*_: Any, **__: Any) -> None:
        waiting.append(1)
        await may_continue.wait()
        raise folding.BeyondTheLog("it was slow")

    monkeypatch.setattr(state, "squad_at", fold_slowly)
    async with running_service(long_log) as service:
        slow = [
            asyncio.create_task(service.api.get("state", at=1)) for _ in range(MAX_CONCURRENT_LOOK_BACKS)
        ]
        await eventually(lambda: len(waiting) == MAX_CONCURRENT_LOOK_BACKS)
        monkeypatch.setattr(state, "TIMEOUT_SECONDS", 0.01)
        body = (await service.api.get("state", at=1)).expect(503, "took_too_long")
        assert "other requests" in body["detail"]
        (await service.api.get("state")).expect(200)
        may_continue.set()
        for answer in await asyncio.gather(*slow):
            answer.expect(404)


async def test_start_on_a_long_log_stores_snapshots_along_it(long_log: str) -> None:
    async with running_service(long_log), connected(long_log) as connection:
        # Stored while the start folded the whole log, as there were neither tables nor snapshots.
        first, second = await snapshots.positions(connection)
        assert 5_000 <= first < second - 4_999 <= EVENTS - 5_000
        assert await log.head_position(connection) >= EVENTS
