"""Reading the log over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.client import Api


async def _types(api: Api, **query: object) -> list[str]:
    return [event["type"] for event in (await api.get("events", **query)).expect(200)["items"]]


async def test_events_are_listed_in_order_without_gaps(api: Api) -> None:
    await api.post("messages", from_agent="ada", message="hello")
    events = (await api.get("events")).expect(200)["items"]
    assert [event["position"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events][-2:] == ["agent_registered", "message_sent"]


async def test_event_is_shown_with_all_its_fields(api: Api) -> None:
    headers = {"X-Correlation-Id": "order-66", "Idempotency-Key": "k1"}
    answer = await api.post("messages", headers, from_agent="ada", message="hello")
    sent = answer.expect(201)
    event = (await api.get(f"events/{sent['position']}")).expect(200)
    assert event["stream"] == f"message-{sent['id']}"
    assert (event["version"], event["actor"], event["caused_by"]) == (1, "agent:ada", None)
    assert (event["correlation_id"], event["idempotency_key"]) == ("order-66", None)
    assert event["data"]["message"] == "hello"
    assert len(bytes.fromhex(event["hash"])) == 32
    assert event["recorded_at"].endswith("Z")


async def test_all_events_of_request_have_its_correlation_id(api: Api) -> None:
    for header in ("X-Correlation-Id", "X-Request-Id"):
        headers = {header: f"from-{header}"}
        answer = await api.post("messages", headers, from_agent=header, message="hello")
        assert answer.headers["X-Correlation-Id"] == f"from-{header}"
        position = answer.expect(201)["position"]
        for event in (await api.get("events", after=position - 2)).expect(200)["items"]:
            assert event["correlation_id"] == f"from-{header}"


async def test_correlation_id_is_generated_when_given_one_is_invalid(api: Api) -> None:
    for given in ("", "two words", "x" * 101, "ümlaut"):
        answer = await api.post("messages", {"X-Correlation-Id": given}, from_agent="a", message="x")
        event = (await api.get(f"events/{answer.expect(201)['position']}")).expect(200)
        assert event["correlation_id"] == answer.headers["X-Correlation-Id"] != given


@pytest.mark.nothing_sealed
async def test_refusal_has_correlation_id_of_request(api: Api) -> None:
    answer = await api.post(
        "budget/reservations", {"X-Correlation-Id": "too-much"}, agent="ada", tokens=10**9
    )
    refused = answer.expect(429, "budget_exhausted")
    assert answer.headers["X-Correlation-Id"] == "too-much"
    event = (await api.get(f"events/{refused['position']}")).expect(200)
    assert (event["type"], event["correlation_id"]) == ("tokens_denied", "too-much")


async def test_events_are_filtered_by_type_stream_agent_and_time(api: Api) -> None:
    first = (await api.post("messages", from_agent="ada", message="one")).expect(201)
    second = (await api.post("messages", from_agent="bob", message="two")).expect(201)
    await api.post("tasks", title="three", assigned_agent="ada")
    assert await _types(api, type="message_sent") == ["message_sent"] * 2
    assert await _types(api, agent="ada") == ["agent_registered", "message_sent", "task_created"]
    assert await _types(api, stream=f"message-{first['id']}") == ["message_sent"]
    assert await _types(api, type="task_created", agent="bob") == []
    assert await _types(api, type="no_such_type") == []
    moment = (await api.get(f"events/{second['position']}")).expect(200)["recorded_at"]
    assert await _types(api, since=moment, type="message_sent") == ["message_sent"]
    until = (await api.get("events", until=moment, type="message_sent")).expect(200)["items"]
    assert [event["position"] for event in until] == [first["position"]]
    assert await _types(api, since="2100-01-01T00:00:00Z") == []


@pytest.mark.nothing_sealed
async def test_position_that_is_not_in_the_log_is_not_found(api: Api) -> None:
    for position in ("0", "999999", "9" * 18):
        (await api.get(f"events/{position}")).expect(404, "not_found")
    for position in ("-1", "x", "1.5", "9" * 19):
        (await api.get(f"events/{position}")).expect(404, "not_found")
