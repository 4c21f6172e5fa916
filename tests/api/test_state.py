"""The squad as it was, over HTTP: what the API answered then, and no answer where there is none."""

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
from tests.support.parts import connected
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api, Service

EVENTS = 12_000
LISTED = ("agents", "operations", "reservations", "jobs", "runs", "tasks", "emails")
YEARLY = {"task": "conflict_check", "cron": "0 0 1 1 *"}


async def _answers(api: Api) -> dict[str, Any]:
    """What the API's other reads answer now, in the state's words."""

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


async def _settled(service: Service) -> tuple[int, dict[str, Any]]:
    """The head, and what was answered while it was that."""
    while True:
        before, answers = await service.head(), await _answers(service.api)
        if await service.head() == before:
            return before, answers


async def _live(api: Api) -> Any:
    """Does one thing after another; stops after each."""
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


async def test_it_is_what_the_api_answered_then(service: Service) -> None:
    api = service.api
    lived: dict[int, dict[str, Any]] = {}
    async for _ in _live(api):
        position, answers = await _settled(service)
        lived[position] = answers
    assert len(lived) > 10
    for position, then in lived.items():
        told = (await api.get("state", at=position)).expect(200)
        assert {name: told[name] for name in then} == then, position
        recorded = (await api.get(f"events/{position}")).expect(200)
        assert (told["position"], told["recorded_at"]) == (position, recorded["recorded_at"])
        assert told["moment"] == recorded["recorded_at"]
        by_time = (await api.get("state", at=recorded["recorded_at"])).expect(200)
        assert by_time == (await api.get("state", at=by_time["position"])).expect(200)


async def test_it_tells_what_no_other_read_does(api: Api) -> None:
    held = (await api.post("budget/reservations", agent="ada", tokens=500)).expect(201)
    told = (await api.get("state", min_position=held["position"])).expect(200)
    [reservation] = told["reservations"]
    assert (reservation["id"], reservation["tokens"]) == (held["id"], 500)
    assert told["orchestrator"]["running"] is True
    assert (told["policy"]["daily_tokens"], told["policy"]["set_by"]) == (100_000, "system:service")
    await api.post("/api/squad", action="orchestrator-shutdown")
    assert (await api.get("state")).body["orchestrator"]["running"] is False
    assert (await api.get("state", at=told["position"])).body["orchestrator"]["running"] is True


async def test_without_a_place_it_is_now(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.05)
    api = service.api
    position = (await api.post("messages", from_agent="ada", message="hello")).expect(201)["position"]
    now = (await api.get("state", min_position=position)).expect(200)
    assert now["position"] >= position
    head = (await api.get("state", at=now["position"])).expect(200)
    assert {**head, "moment": now["moment"]} == now
    assert now["moment"] >= now["recorded_at"]
    (await api.get("state", min_position=now["position"] + 10_000)).expect(504, "not_yet")


async def test_the_squad_is_not_copied_for_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 200,000 things open that takes 40 milliseconds, in which nobody is served."""
    monkeypatch.setattr(Squad, "copy", lambda _: pytest.fail("it was copied"))
    assert (await api.get("state")).expect(200)["position"] > 0


async def test_a_very_long_one_leaves_in_pieces(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole one of a hundred megabytes would be more than may wait to be taken."""
    whole = await api.get("state", at=1)
    monkeypatch.setattr(chunks, "PAGE_BYTES", 100)
    respond_in_chunks = await api.get("state", at=1)
    assert respond_in_chunks.expect(200) == whole.expect(200)
    assert "Content-Length" in whole.headers
    assert respond_in_chunks.headers["Transfer-Encoding"] == "chunked"
    assert respond_in_chunks.headers.keys() >= whole.headers.keys() - {"Content-Length"}


async def test_what_another_process_opened_again_is_there(database: str) -> None:
    async with running_service(database) as one, running_service(database) as other:
        task = (await one.api.post("tasks", title="look", status="completed")).expect(201)
        await other.api.get("state", min_position=task["position"])
        again = (await one.api.patch(f"tasks/{task['id']}", status="new")).expect(200)
        told = (await other.api.get("state", min_position=again["position"])).expect(200)
        assert [row["id"] for row in told["tasks"]] == [task["id"]]


async def test_before_the_first_event_there_is_nothing(api: Api) -> None:
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


async def test_beyond_the_end_there_is_no_answer(service: Service) -> None:
    head = await service.head()
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    told = (await service.api.get("state", at=head + 1_000)).expect(404, "not_found")
    assert "ends at position" in told["detail"]
    told = (await service.api.get("state", at=f"{tomorrow:%Y-%m-%dT%H:%M:%SZ}")).expect(404, "not_found")
    assert "is in the future" in told["detail"]
    (await service.api.get("state", at=2**63 - 1)).expect(404, "not_found")


async def test_what_is_no_place_is_refused_by_name(api: Api) -> None:
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
async def long_ago(empty_database: str) -> str:
    """The DSN of a squad with a history."""
    async for _ in fill(empty_database, "squad", EVENTS):
        pass
    return empty_database


async def test_others_are_answered_while_it_folds(long_ago: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "INTERVAL_EVENTS", 10**9)
    async with running_service(long_ago) as service:
        looking = asyncio.create_task(service.api.get("state", at=EVENTS - 1))
        answered = 0
        while not looking.done():
            (await service.api.get("/healthz")).expect(200)
            answered += 1
        assert (await looking).expect(200)["position"] == EVENTS - 1
        assert answered > 5


async def test_what_takes_too_long_goes_on_when_it_is_asked_for_again(
    long_ago: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.page_size.INITIAL_EVENTS", 2_500)
    async with running_service(long_ago) as service, connected(long_ago) as connection:
        await connection.execute("TRUNCATE snapshots")
        monkeypatch.setattr(state, "TIMEOUT_SECONDS", 0.001)
        told = (await service.api.get("state", at=6_000)).expect(503, "took_too_long")
        assert "folded up to position 2500 of 6000" in told["detail"]
        assert told["retry_after_seconds"] == 1
        (await service.api.get("state", at=6_000)).expect(503, "took_too_long")
        assert (await service.api.get("state", at=6_000)).expect(200)["position"] == 6_000
        assert {2_500, 5_000} <= set(await snapshots.positions(connection))


async def test_only_a_few_look_back_at_once(long_ago: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = 0, 0
    squad_at = history.squad_at

    async def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal at_once, most
        at_once, most = at_once + 1, max(most, at_once + 1)
        try:
            return await squad_at(*arguments, **named)
        finally:
            at_once -= 1

    monkeypatch.setattr(state, "squad_at", counted)
    async with running_service(long_ago) as service:
        answers = await asyncio.gather(*(service.api.get("state", at=4_900) for _ in range(8)))
        assert len({answer.expect(200)["position"] for answer in answers}) == 1
        assert most == MAX_CONCURRENT_LOOK_BACKS


async def test_whoever_waits_for_too_long_is_told(long_ago: str, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on, waiting = asyncio.Event(), []

    async def slowly(*_: Any, **__: Any) -> None:
        waiting.append(1)
        await going_on.wait()
        raise folding.BeyondTheLog("it was slow")

    monkeypatch.setattr(state, "squad_at", slowly)
    async with running_service(long_ago) as service:
        slow = [
            asyncio.create_task(service.api.get("state", at=1)) for _ in range(MAX_CONCURRENT_LOOK_BACKS)
        ]
        await eventually(lambda: len(waiting) == MAX_CONCURRENT_LOOK_BACKS)
        monkeypatch.setattr(state, "TIMEOUT_SECONDS", 0.01)
        told = (await service.api.get("state", at=1)).expect(503, "took_too_long")
        assert "other requests" in told["detail"]
        (await service.api.get("state")).expect(200)
        going_on.set()
        for answer in await asyncio.gather(*slow):
            answer.expect(404)


async def test_a_service_on_a_long_log_starts_with_snapshots_along_it(long_ago: str) -> None:
    async with running_service(long_ago), connected(long_ago) as connection:
        # Put away while the start folded it, there being neither tables nor snapshots.
        first, second = await snapshots.positions(connection)
        assert 5_000 <= first < second - 4_999 <= EVENTS - 5_000
        assert await log.head_position(connection) >= EVENTS
