"""The seed's interface, `/api/squad`: what its users and their scripts rely on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from service.http import long_answers, squad
from tests.api.client import running_service

if TYPE_CHECKING:
    import pytest

    from tests.api.client import Api, Service

UNKNOWN = "00000000-0000-7000-8000-000000000000"
INIT = {"action": "orchestrator-init"}
SHUTDOWN = {"action": "orchestrator-shutdown"}


async def _status(api: Api) -> dict[str, Any]:
    return (await api.get("/api/squad", action="orchestrator-status")).expect(200)


async def _overview(api: Api, **filters: object) -> dict[str, Any]:
    return (await api.get("/api/squad", **filters)).expect(200)


async def test_status_has_the_format_of_the_seed(api: Api) -> None:
    await api.post("budget/usage", agent="email_agent", tokens=450)
    await api.post("budget/reservations", agent="quote_agent", tokens=50)
    resources = {"emailId": "email-123", "customerId": "c7"}
    held = await api.post("operations", agent="email_agent", action="respond", resources=resources)
    status = await _status(api)
    assert status["tokenBudget"] == {
        "total": 100_000,
        "used": 450,
        "remaining": 99_500,
        "agentUsage": {"email_agent": 450},
    }
    assert status["activeOperations"] == [
        {
            "id": held.body["id"],
            "agents": ["email_agent"],
            "action": "respond",
            "timestamp": held.body["started_at"],
            **resources,
        }
    ]
    assert status["timestamp"].endswith("Z")


async def test_long_answers_equal_short_ones(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        await api.post("operations", agent=f"a{number}", action="x", resources={"emailId": f"e{number}"})
        await api.post("budget/usage", agent=f"a{number}", tokens=10 + number)
    paths = ("/api/squad", "/api/squad?action=orchestrator-status", "budget", "state")

    async def answers() -> list[dict[str, Any]]:
        found = [(await api.get(path)).expect(200) for path in paths]
        return [{**body, "timestamp": None, "moment": None} for body in found]

    short = await answers()
    monkeypatch.setattr(long_answers, "FEW", 0)
    assert await answers() == short


async def test_resource_kinds_do_not_hide_fields_of_operation(api: Api) -> None:
    resources = {"id": "x", "agents": "y", "action": "z"}
    held = await api.post("operations", agent="ada", action="respond", resources=resources)
    [shown] = (await _status(api))["activeOperations"]
    assert (shown["id"], shown["agents"], shown["action"]) == (held.body["id"], ["ada"], "respond")


async def test_overview_has_the_columns_of_the_seeds_tables(api: Api) -> None:
    message = {"action": "orchestrator-message", "fromAgent": "ada", "message": "hello", "data": {"a": 1}}
    sent = (await api.post("/api/squad", **message)).expect(200)
    assert (sent["success"], sent["message"]) == (True, "Message sent")
    await api.post("/api/squad", title="Answer", assignedAgent="ada")
    shown = await _overview(api)
    [task], [activity], [agent] = shown["tasks"], shown["activity"], shown["agents"]
    columns = "id title description status assigned_agent priority deliverable_url created_at updated_at"
    assert task.keys() >= set(columns.split())
    columns = "id from_agent to_agent message task_id data created_at"
    assert activity.keys() >= set(columns.split())
    assert agent.keys() == {"id", "name", "role", "status", "last_active"}
    orchestrator = shown["orchestrator"]
    assert orchestrator["isRunning"]
    assert orchestrator["startedAt"].endswith("Z")
    assert orchestrator["scheduledJobs"] == []
    assert activity["position"] == sent["position"]


async def test_overview_shows_only_the_newest_entries_and_newest_first(api: Api) -> None:
    commands = [
        {"method": "POST", "path": "/api/v1/messages", "body": {"from_agent": "a", "message": f"m{n}"}}
        for n in range(60)
    ] + [{"method": "POST", "path": "/api/v1/tasks", "body": {"title": f"t{n}"}} for n in range(110)]
    (await api.post("batch", commands=commands)).expect(200)
    shown = await _overview(api)
    assert [row["message"] for row in shown["activity"]] == [f"m{n}" for n in range(59, 9, -1)]
    assert [row["title"] for row in shown["tasks"]] == [f"t{n}" for n in range(109, 9, -1)]


async def test_overview_shows_fewer_entries_when_they_are_large(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squad, "NEWEST_BYTES", 100_000)
    for number in range(5):
        await api.post("messages", from_agent="ada", message=f"m{number}", data={"large": "x" * 40_000})
        await api.post("tasks", title=f"t{number}", description="x" * 40_000)
    shown = await _overview(api)
    assert [row["message"] for row in shown["activity"]] == ["m4", "m3", "m2"]
    assert [row["title"] for row in shown["tasks"]] == ["t4", "t3", "t2"]


async def test_overview_is_filtered_by_agent_name_and_role(api: Api) -> None:
    await api.put("agents/ada", role="writer")
    await api.put("agents/bob", role="writer")
    await api.put("agents/eve", role="editor")
    await api.post("messages", from_agent="ada", to_agent="eve", message="to eve")
    await api.post("messages", from_agent="bob", message="to all")
    await api.post("tasks", title="ada's", assigned_agent="ada")
    await api.post("tasks", title="ghost's", assigned_agent="ghost")

    async def found(**filters: object) -> tuple[list[str], list[str], list[str]]:
        shown = await _overview(api, **filters)
        return (
            [row["name"] for row in shown["agents"]],
            [row["message"] for row in shown["activity"]],
            [row["title"] for row in shown["tasks"]],
        )

    assert await found(agentName="eve") == (["eve"], ["to eve"], [])
    assert await found(agentType="writer") == (["ada", "bob"], ["to all", "to eve"], ["ada's"])
    assert await found(agentType="writer", agentName="bob") == (["bob"], ["to all"], [])
    assert await found(agentName="ghost") == ([], [], ["ghost's"])
    assert await found(agentType="nobody's role") == ([], [], [])


async def test_overview_is_filtered_by_day_and_time(api: Api) -> None:
    created = (await api.post("tasks", title="today")).expect(201)["created_at"]
    await api.post("messages", from_agent="ada", message="today")
    moment = datetime.fromisoformat(created)
    today = moment.astimezone(UTC).date()

    async def found(**filters: object) -> tuple[int, int]:
        shown = await _overview(api, **filters)
        return len(shown["tasks"]), len(shown["activity"])

    assert await found(dateFrom=today, dateTo=today) == (1, 1)
    assert await found(dateFrom=today + timedelta(days=1)) == (0, 0)
    assert await found(dateTo=today - timedelta(days=1)) == (0, 0)
    assert await found(dateFrom=created) == (1, 1)
    assert await found(dateTo=created) == (1, 0)
    assert await found(dateTo=moment - timedelta(microseconds=1)) == (0, 0)
    assert await found(dateFrom=moment.replace(tzinfo=None).isoformat()) == (1, 1)
    assert await found(dateTo="9998-12-31") == (1, 1)


async def test_repeated_init_or_shutdown_appends_nothing(service: Service) -> None:
    for action, message in ((SHUTDOWN, "Orchestrator shut down"), (INIT, "Orchestrator initialized")):
        first = (await service.api.post("/api/squad", **action)).expect(200)
        assert (first["success"], first["message"]) == (True, message)
        head = await service.head()
        assert (await service.api.post("/api/squad", **action)).expect(200) == first
        assert await service.head() == head


async def test_shutdown_survives_restart_and_still_allows_reads_and_messages(database: str) -> None:
    async with running_service(database) as service:
        await service.api.post("/api/squad", **SHUTDOWN)
    async with running_service(database) as service:
        api = service.api
        refused = (await api.get("/api/squad", action="orchestrator-status")).expect(503)
        assert refused["error"] == "Orchestrator is not running"
        assert not (await _overview(api))["orchestrator"]["isRunning"]
        message = {"action": "orchestrator-message", "fromAgent": "ada", "message": "hello"}
        (await api.post("/api/squad", **message)).expect(200)
        (await api.get("budget")).expect(200)
        await api.post("/api/squad", **INIT)
        await _status(api)
    async with running_service(database) as service:
        await _status(service.api)


async def test_tasks_are_created_and_changed(api: Api) -> None:
    body = {
        "title": "Answer",
        "assignedAgent": "ada",
        "priority": "urgent",
        "deliverableUrl": "http://x.test",
    }
    created = (await api.post("/api/squad", **body)).expect(200)
    task = created["task"]
    assert (task["assigned_agent"], task["priority"], task["status"]) == ("ada", "urgent", "new")
    assert created["position"] > 0
    changed = (await api.patch("/api/squad", id=task["id"], status="completed")).expect(200)["task"]
    assert (changed["status"], changed["title"], changed["assigned_agent"]) == (
        "completed",
        "Answer",
        "ada",
    )
    [shown] = (await _overview(api))["tasks"]
    assert shown["status"] == "completed"


async def test_column_names_are_accepted_and_unknown_fields_ignored(api: Api) -> None:
    created = await api.post("/api/squad", title="Answer", assigned_agent="ada", color="red")
    assert created.expect(200)["task"]["assigned_agent"] == "ada"
