"""Invalid query parameters, headers and fields of the seed's facade are rejected by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from yarl import URL

from tests.api.inputs import LISTS, READS, UNKNOWN_ID

if TYPE_CHECKING:
    from tests.api.client import Api, Service

# All tests share one service, which has to withstand all of this input.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def service(shared_service: Service) -> Service:
    return shared_service


@pytest.mark.parametrize("limit", [0, -1, 1001, "x", "", "1.5"])
async def test_limit_must_be_between_1_and_1000(api: Api, limit: object) -> None:
    for path in LISTS:
        problem = (await api.get(path, limit=limit)).expect(422, "validation_failed")
        assert problem["errors"][0]["field"] == "limit"
    for path in LISTS:
        (await api.get(path, limit=1000)).expect(200)


async def test_unknown_and_repeated_parameters_are_rejected(api: Api) -> None:
    await api.put("agents/ada", role="writer")
    for path in READS:
        mark = "&" if "?" in path else "?"
        unknown = (await api.get(f"{path}{mark}color=red")).expect(422, "validation_failed")
        assert unknown["errors"][0]["field"] == "color"
        twice = (await api.get(f"{path}{mark}min_position=1&min_position=1")).expect(
            422, "validation_failed"
        )
        assert twice["errors"] == [{"field": "min_position", "message": "must be given only once"}]


async def test_parameter_without_a_name_is_rejected(api: Api) -> None:
    problem = (await api.get("agents?=1")).expect(422, "validation_failed")
    assert problem["errors"][0]["field"] == "query"


@pytest.mark.parametrize("path", ["events/{}", "explain/{}"])
async def test_position_in_path_must_be_ascii_digits(api: Api, path: str) -> None:
    arabic_one = "\N{ARABIC-INDIC DIGIT ONE}"
    (await api.get(path.format("1"))).expect(200)
    (await api.get(path.format(arabic_one))).expect(404, "not_found")


@pytest.mark.parametrize("value", ["-1", "x", "", "1e3", "9223372036854775808", "9" * 400])
async def test_min_position_must_be_a_number_of_63_bits(api: Api, value: str) -> None:
    for path in READS:
        problem = (await api.get(path, min_position=value)).expect(422, "validation_failed")
        assert problem["errors"][0]["field"] == "min_position"


async def test_filter_with_unknown_value_is_rejected(api: Api) -> None:
    for path in ("operations?state=done", "tasks?status=new,old", "tasks?priority=", "emails?status=x"):
        problem = (await api.get(path)).expect(422, "validation_failed")
        # Only this error, and not also one about an empty list.
        assert len(problem["errors"]) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("since", "yesterday"),
        ("since", "2026-01-01T00:00:00"),
        ("until", "0001-01-01T00:00:00Z"),
        ("until", "9999-12-31T23:59:59Z"),
        ("type", "DROP TABLE"),
        ("type", ""),
        ("agent", "x" * 101),
        ("agent", "\x00"),
        ("stream", "\x00"),
        ("stream", "s" * 401),
    ],
)
async def test_invalid_filter_of_events_is_rejected(api: Api, name: str, value: str) -> None:
    problem = (await api.get("events", **{name: value})).expect(422, "validation_failed")
    assert problem["errors"][0]["field"] == name


async def test_unescaped_plus_in_time_is_rejected_with_advice(api: Api) -> None:
    for path in ("events?since=", "events?until=", "state?at="):
        async with api.session.get(
            URL(f"/api/v1/{path}2026-01-31T09:00:00+01:00", encoded=True)
        ) as response:
            assert response.status == 422
            assert "%2B" in (await response.json(content_type=None))["detail"]
    (await api.get("events", since="2026-01-31T09:00:00+01:00")).expect(200)


@pytest.mark.parametrize("given", ["", "-1", "x", "1.5", "0" * 5_000, "9" * 19, "٣"])
async def test_last_event_id_must_be_a_position(api: Api, given: str) -> None:
    answer = await api.get("events/stream", {"Last-Event-ID": given})
    problem = answer.expect(422, "validation_failed")
    assert problem["errors"] == [{"field": "Last-Event-ID", "message": "must be the position of an event"}]


@pytest.mark.parametrize("key", ["", " ", "two words", "k" * 201, "schlüssel"])
async def test_idempotency_key_must_be_1_to_200_visible_characters(service: Service, key: str) -> None:
    head = await service.head()
    headers = {"Idempotency-Key": key}
    task: dict[str, object] = {"title": "t"}
    batch: dict[str, object] = {"commands": [{"method": "POST", "path": "/api/v1/tasks", "body": task}]}
    for path, body in (("tasks", task), ("batch", batch), ("/api/squad", task)):
        answer = await service.api.post(path, headers, **body)
        errors = answer.body.get("errors") or answer.body["details"]
        assert errors == [
            {"field": "Idempotency-Key", "message": "must be 1 to 200 visible ASCII characters"}
        ]
    assert await service.head() == head


async def test_two_idempotency_keys_are_rejected(service: Service) -> None:
    """Whichever was used, a repeat with the other one would take effect again."""
    head = await service.head()
    headers = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]
    async with service.api.session.post("/api/v1/tasks", json={"title": "t"}, headers=headers) as response:
        assert response.status == 422
        problem = await response.json(content_type=None)
    assert problem["errors"] == [{"field": "Idempotency-Key", "message": "must be given only once"}]
    assert await service.head() == head


@pytest.mark.parametrize("value", ["tomorrow", "", "9999-12-31", "0001-01-01", "2026-13-01", "1e30"])
@pytest.mark.parametrize("name", ["dateFrom", "dateTo"])
async def test_invalid_date_of_facade_is_rejected(api: Api, name: str, value: str) -> None:
    refused = (await api.get("/api/squad", **{name: value})).expect(400)
    assert refused["details"][0]["field"] == name
    assert "2026-01-31" in refused["details"][0]["message"]


@pytest.mark.parametrize(
    ("method", "body", "field"),
    [
        ("POST", {}, "title"),
        ("POST", {"title": ""}, "title"),
        ("POST", {"title": 7}, "title"),
        ("POST", {"title": "t", "priority": "asap"}, "priority"),
        ("POST", {"title": "t", "assignedAgent": "\x00"}, "assignedAgent"),
        ("POST", {"action": "dance"}, "action"),
        ("POST", {"action": 7, "title": "t"}, "action"),
        ("POST", {"action": "orchestrator-message"}, "fromAgent"),
        ("POST", {"action": "orchestrator-message", "fromAgent": "ada"}, "message"),
        ("POST", {"action": "orchestrator-message", "fromAgent": "ada", "message": ""}, "message"),
        ("POST", {"action": "orchestrator-message", "fromAgent": "a", "message": "m", "data": 1}, "data"),
        ("PATCH", {}, "id"),
        ("PATCH", {"id": "7"}, "id"),
        ("PATCH", {"id": UNKNOWN_ID, "title": None}, "title"),
        ("PATCH", {"id": UNKNOWN_ID, "status": "done"}, "status"),
    ],
)
async def test_missing_or_invalid_field_of_facade_is_answered_with_400(
    service: Service, method: str, body: dict[str, object], field: str
) -> None:
    head = await service.head()
    refused = (await service.api.ask(method, "/api/squad", body)).expect(400)
    assert refused["error"]
    assert field in [problem["field"] for problem in refused["details"]]
    assert await service.head() == head


async def test_error_of_facade_names_all_missing_fields(api: Api) -> None:
    refused = (await api.post("/api/squad", action="orchestrator-message")).expect(400)
    assert refused["error"] == "Missing required fields: fromAgent, message"


async def test_other_errors_of_facade_have_the_same_format(api: Api) -> None:
    unknown = (await api.patch("/api/squad", id=UNKNOWN_ID, status="new")).expect(404)
    assert unknown["details"] == {"code": "task_not_found"}
    action = (await api.get("/api/squad", action="dance")).expect(400)
    assert action["error"] == "Unknown action: dance"
    async with api.session.post(
        "/api/squad", data=b"{", headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 400
        assert (await response.json())["details"]["code"] == "malformed_json"
    async with api.session.post(
        "/api/squad", data=b"{}", headers={"Content-Type": "text/plain"}
    ) as response:
        assert response.status == 415
        assert (await response.json())["details"]["code"] == "unsupported_media_type"
