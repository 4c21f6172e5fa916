"""Explanations of events over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.client import Api


def _sentences(found: dict[str, Any]) -> str:
    return " ".join(reason["sentence"] for reason in found["reasons"])


async def test_refused_claim_is_explained_by_the_claim_that_blocked_it(api: Api) -> None:
    resources = {"emailId": "e-1"}
    held = (await api.post("operations", agent="ada", action="respond", resources=resources)).expect(201)
    answer = await api.post("operations", agent="bob", action="quote", resources=resources)
    refused = answer.expect(409, "conflict")
    found = (await api.get(f"explain/{refused['position']}")).expect(200)
    assert found["type"] == "conflict_detected"
    assert found["summary"] == "bob was blocked from “quote”: ada had claimed emailId e-1 for “respond”."
    assert "ada had claimed emailId e-1 for “respond”" in _sentences(found)
    assert "under the rules set by the service on startup" in _sentences(found)
    assert found["facts"]["holder"]["operation_id"] == held["id"]
    assert found["facts"]["holder"]["position"] == held["position"]
    assert found["causes"][0]["position"] == held["position"]


async def test_refused_reservation_is_explained_by_the_largest_uses(api: Api) -> None:
    await api.post("budget/usage", agent="ada", tokens=60_000)
    await api.post("budget/usage", agent="bob", tokens=20_000)
    answer = await api.post("budget/reservations", agent="eve", tokens=20_001)
    refused = answer.expect(429, "budget_exhausted")
    found = (await api.get(f"explain/{refused['position']}")).expect(200)
    assert [use["tokens"] for use in found["facts"]["largest_uses"]] == [60_000, 20_000]
    assert "The squad may use 100,000 tokens a day, under the rules set by" in _sentences(found)
    assert found["origin"]["kind"] == "request"
    assert found["facts"]["budget_resets_at"].endswith("Z")


async def test_event_is_traced_back_to_its_request(api: Api) -> None:
    headers = {"X-Correlation-Id": "order-66", "Idempotency-Key": "k-1"}
    sent = (await api.post("messages", headers, from_agent="ada", message="hello")).expect(201)
    origin = (await api.get(f"explain/{sent['position']}")).expect(200)["origin"]
    assert origin["kind"] == "request"
    assert origin["facts"]["correlation_id"] == "order-66"
    assert (origin["facts"]["idempotency_key"], origin["facts"]["status"]) == ("k-1", 201)


async def test_every_event_of_new_squad_is_explained(api: Api) -> None:
    events = (await api.get("events")).expect(200)["items"]
    for event in events:
        found = (await api.get(f"explain/{event['position']}")).expect(200)
        assert (found["type"], found["recorded_at"]) == (event["type"], event["recorded_at"])
        assert found["origin"]["kind"] == "service"


@pytest.mark.parametrize("position", ["0", "999999", "9" * 18, "-1", "x", "1.5", "9" * 19])
async def test_position_that_is_not_in_the_log_is_not_found(api: Api, position: str) -> None:
    (await api.get(f"explain/{position}")).expect(404, "not_found")


async def test_event_is_explained_right_after_it_was_appended(api: Api) -> None:
    for number in range(20):
        sent = (await api.post("messages", from_agent="ada", message=f"{number}")).expect(201)
        found = await api.get(f"explain/{sent['position']}", min_position=sent["position"])
        assert found.expect(200)["summary"] == f"ada sent everybody a message: “{number}”."
