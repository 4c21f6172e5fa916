"""Work that is free for all to take: whoever comes first gets it, and everybody else learns of that."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.client import running_service
from tests.support.keys import make_key

if TYPE_CHECKING:
    from tests.api.client import Api, Service

AGENTS = ("ada", "bob", "cem", "dot")


async def _take_one(api: Api, agent: str) -> str | None:
    """Take the oldest task that is still free, as the documentation shows it; return its id."""
    free = (await api.get("tasks?status=new&assigned_agent=")).expect(200)["items"]
    for task in free:
        answer = await api.patch(
            f"tasks/{task['id']}",
            status="in_progress",
            assigned_agent=agent,
            if_position=task["position"],
        )
        if answer.status == 200:
            return str(task["id"])
        answer.expect(409, "changed")
    return None


async def test_each_task_goes_to_one_agent_when_all_take_tasks_at_two_services(database: str) -> None:
    keys = [(await make_key(database, "agent", agent)).text for agent in AGENTS]
    operator = (await make_key(database)).text
    async with running_service(database) as one, running_service(database) as other:
        everything = one.api.with_key(operator)
        created = [
            (await everything.post("tasks", title=f"task {number}")).expect(201)
            for number in range(len(AGENTS))
        ]
        for service in (one, other):
            shown = await service.api.with_key(operator).get("tasks", min_position=created[-1]["position"])
            assert len(shown.expect(200)["items"]) == len(AGENTS)
        clients = [service.api.with_key(key) for service, key in zip((one, other) * 2, keys, strict=True)]
        taken = await asyncio.gather(*map(_take_one, clients, AGENTS))
        assert Counter(taken) == Counter(task["id"] for task in created)
        assert await _take_one(clients[0], AGENTS[0]) is None
        # To come too late is no attempt at what is another's.
        denied = (await everything.get("events", type="access_denied")).expect(200)
        assert denied["items"] == []


@pytest.mark.parametrize(
    ("kind", "created", "taken", "done"),
    [
        (
            "tasks",
            {"title": "Answer"},
            {"assigned_agent": "ada", "status": "in_progress"},
            {"status": "completed"},
        ),
        (
            "emails",
            {"gmail_message_id": "g", "from_email": "c@example.com"},
            {"handled_by": "ada", "status": "classified"},
            {"status": "archived"},
        ),
    ],
)
async def test_second_change_is_refused_and_names_the_first_when_both_read_the_same(
    service: Service, kind: str, created: dict[str, Any], taken: dict[str, Any], done: dict[str, Any]
) -> None:
    api = service.api
    path = f"{kind}/{(await api.post(kind, **created)).expect(201)['id']}"
    read = (await api.get(path)).expect(200)
    won = (await api.patch(path, **taken, if_position=read["position"])).expect(200)
    head = await service.head()
    assert won["position"] == head

    key = {"Idempotency-Key": "one"}
    late = {**taken, "if_position": read["position"]}
    lost = (await api.ask("PATCH", path, late, headers=key)).expect(409, "changed")
    assert lost["current_position"] == won["position"]
    # The refusal is recorded nowhere, so it does not use up the key.
    assert "position" not in lost
    assert await service.head() == head

    now = (await api.get(path, min_position=lost["current_position"])).expect(200)
    assert now["position"] == won["position"]
    assert (await api.get(kind)).expect(200)["items"] == [now]
    current = {**done, "if_position": now["position"]}
    changed = (await api.ask("PATCH", path, current, headers=key)).expect(200)
    # That of the change, not that of the answer, which the log keeps behind it.
    assert changed["position"] == head + 1
    assert (await api.get(path)).expect(200)["position"] == changed["position"]
    assert (await api.ask("PATCH", path, current, headers=key)).expect(200) == changed


async def test_second_change_in_a_batch_is_refused_when_both_name_the_same_position(api: Api) -> None:
    task = (await api.post("tasks", title="Answer")).expect(201)
    commands = [
        {
            "method": "PATCH",
            "path": f"/api/v1/tasks/{task['id']}",
            "body": {"assigned_agent": agent, "if_position": task["position"]},
        }
        for agent in ("ada", "bob")
    ]
    won, lost = (await api.post("batch", commands=commands)).expect(200)["results"]
    assert (won["status"], lost["status"], lost["body"]["code"]) == (200, 409, "changed")
    assert lost["body"]["current_position"] == won["body"]["position"]
    assert (await api.get(f"tasks/{task['id']}")).expect(200)["assigned_agent"] == "ada"
