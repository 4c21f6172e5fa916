"""The task board and the e-mail log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.client import Api

UNKNOWN = "00000000-0000-7000-8000-000000000000"


@pytest.mark.nothing_sealed
async def test_task_is_new_and_of_medium_priority_by_default(api: Api) -> None:
    created = (await api.post("tasks", title="Answer")).expect(201)
    assert {name: value for name, value in created.items() if value is None} == {
        "description": None,
        "assigned_agent": None,
        "deliverable_url": None,
    }
    assert (created["status"], created["priority"]) == ("new", "medium")
    shown = (await api.get(f"tasks/{created['id']}")).expect(200)
    assert shown["title"] == "Answer"
    assert shown["position"] == created["position"]


@pytest.mark.nothing_sealed
async def test_patch_changes_only_given_fields_and_null_clears_them(api: Api) -> None:
    created = (await api.post("tasks", title="Answer", description="soon", priority="high")).expect(201)
    path = f"tasks/{created['id']}"
    changed = (await api.patch(path, status="in_progress", description=None)).expect(200)
    assert (changed["status"], changed["description"], changed["priority"]) == ("in_progress", None, "high")
    assert changed["updated_at"] > created["updated_at"] == changed["created_at"]
    shown = (await api.get(path)).expect(200)
    assert (shown["status"], shown["description"]) == ("in_progress", None)


@pytest.mark.nothing_sealed
async def test_patch_that_changes_nothing_appends_nothing(api: Api) -> None:
    created = (await api.post("tasks", title="Answer")).expect(201)
    same = (await api.patch(f"tasks/{created['id']}", title="Answer")).expect(200)
    assert same["position"] == created["position"]


@pytest.mark.nothing_sealed
async def test_completed_task_can_be_reopened(api: Api) -> None:
    created = (await api.post("tasks", title="Answer", status="completed")).expect(201)
    changed = (await api.patch(f"tasks/{created['id']}", status="in_progress")).expect(200)
    assert (changed["status"], changed["title"]) == ("in_progress", "Answer")


@pytest.mark.nothing_sealed
async def test_tasks_are_filtered_by_status_priority_and_agent(api: Api) -> None:
    await api.post("tasks", title="one", priority="low", assigned_agent="ada")
    await api.post("tasks", title="two", priority="urgent", status="completed")
    await api.post("tasks", title="three", priority="high", status="in_progress", assigned_agent="ada")

    async def titles(**query: object) -> list[str]:
        return [task["title"] for task in (await api.get("tasks", **query)).expect(200)["items"]]

    assert await titles() == ["one", "two", "three"]
    assert await titles(status="new,completed") == ["one", "two"]
    assert await titles(priority="high,urgent") == ["two", "three"]
    assert await titles(assigned_agent="ada", priority="high") == ["three"]


async def test_email_is_logged_once_per_gmail_id(api: Api) -> None:
    body = {"gmail_message_id": "g1", "from_email": "c@example.com", "subject": "Question"}
    logged = (await api.post("emails", **body)).expect(201)
    assert (logged["category"], logged["status"]) == ("unclassified", "unread")
    refused = (await api.post("emails", **body)).expect(409, "email_exists")
    assert refused["email_id"] == logged["id"]
    shown = (await api.get(f"emails/{logged['id']}")).expect(200)
    assert (shown["gmail_message_id"], shown["subject"]) == ("g1", "Question")


async def test_patch_changes_status_and_other_fields_of_email(api: Api) -> None:
    logged = (await api.post("emails", gmail_message_id="g1", from_email="c@example.com")).expect(201)
    path = f"emails/{logged['id']}"
    for status in ("classified", "draft_created", "sent", "archived", "unread"):
        assert (await api.patch(path, status=status)).expect(200)["status"] == status
    changed = (await api.patch(path, category="inquiry", handled_by="ada", payload={"a": [1]})).expect(200)
    assert (changed["category"], changed["handled_by"], changed["payload"]) == (
        "inquiry",
        "ada",
        {"a": [1]},
    )


async def test_emails_are_filtered_by_category_gmail_id_status_and_agent(api: Api) -> None:
    for number, category in enumerate(("inquiry", "spam", "inquiry")):
        await api.post(
            "emails", gmail_message_id=f"g{number}", from_email="c@example.com", category=category
        )

    async def ids(**query: object) -> list[str]:
        return [
            item["gmail_message_id"] for item in (await api.get("emails", **query)).expect(200)["items"]
        ]

    assert await ids(category="inquiry") == ["g0", "g2"]
    assert await ids(gmail_message_id="g1") == ["g1"]
    assert await ids(status="sent,archived") == []
    assert await ids(handled_by="ada") == []


@pytest.mark.nothing_sealed
async def test_unknown_task_or_email_is_not_found(api: Api) -> None:
    for kind in ("task", "email"):
        (await api.get(f"{kind}s/{UNKNOWN}")).expect(404, f"{kind}_not_found")
        (await api.patch(f"{kind}s/{UNKNOWN}", status="new" if kind == "task" else "sent")).expect(
            404, f"{kind}_not_found"
        )


@pytest.mark.nothing_sealed
async def test_id_must_be_a_uuid_in_upper_or_lower_case(api: Api) -> None:
    created = (await api.post("tasks", title="Answer")).expect(201)
    (await api.get(f"tasks/{str(created['id']).upper()}")).expect(200)
    fault = (await api.get("tasks/7")).expect(422, "validation_failed")
    assert fault["errors"] == [{"field": "id", "message": "must be a UUID"}]


@pytest.mark.nothing_sealed
async def test_unassigned_tasks_are_listed_when_the_filter_is_empty(api: Api) -> None:
    for title, fields in (
        ("free", {}),
        ("ada's", {"assigned_agent": "ada"}),
        ("done", {"status": "completed"}),
        ("also free", {"priority": "high"}),
    ):
        (await api.post("tasks", title=title, **fields)).expect(201)

    async def titles(query: str) -> list[str]:
        return [task["title"] for task in (await api.get(f"tasks?{query}")).expect(200)["items"]]

    assert await titles("assigned_agent=") == ["free", "done", "also free"]
    assert await titles("assigned_agent=&status=new,in_progress") == ["free", "also free"]
    assert await titles("assigned_agent=&priority=high") == ["also free"]
    first = (await api.get("tasks?assigned_agent=&limit=1")).expect(200)
    assert await titles(f"assigned_agent=&after={first['next']}") == ["done", "also free"]
    (await api.get("tasks?assigned_agent=%20")).expect(422, "validation_failed")
