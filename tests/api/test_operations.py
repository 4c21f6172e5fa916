"""Operations: claims, conflicts, heartbeats, finishing and expiry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.api.client import running_service
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api

UNKNOWN = "00000000-0000-7000-8000-000000000000"
EMAIL = {"emailId": "email-123"}


async def _claim(api: Api, agent: str = "ada", **more: object) -> dict[str, Any]:
    body = {"agent": agent, "action": "respond", "resources": EMAIL, **more}
    return (await api.post("operations", **body)).expect(201)


async def test_claim_is_granted_with_growing_fencing_token(api: Api) -> None:
    first = await _claim(api)
    assert first["fencing_token"] == first["position"]
    assert first["started_at"] < first["blocks_until"] < first["expires_at"]
    second = await _claim(api, "bob", resources={"emailId": "email-124"})
    assert second["fencing_token"] > first["fencing_token"]


async def test_conflicting_claim_is_refused_with_the_claim_that_blocks_it(api: Api) -> None:
    held = await _claim(api, resources={**EMAIL, "customerId": "c7"})
    answer = await api.post("operations", agent="bob", action="archive", resources=EMAIL)
    refused = answer.expect(409, "conflict")
    assert refused["conflict"] == {
        "operation_id": held["id"],
        "agents": ["ada"],
        "action": "respond",
        "resources": {**EMAIL, "customerId": "c7"},
        "contested": EMAIL,
        "started_at": held["started_at"],
        "blocks_until": held["blocks_until"],
        "expires_at": held["expires_at"],
        "position": held["fencing_token"],
    }
    assert refused["position"] > held["position"]
    assert int(answer.headers["Retry-After"]) in range(1, 31)


async def test_conflicts_are_listed_and_filtered_by_agent(api: Api) -> None:
    held = await _claim(api)
    for agent in ("bob", "carol"):
        await api.post("operations", agent=agent, action="archive", resources=EMAIL)
    listed = (await api.get("conflicts")).expect(200)["items"]
    assert [(item["agent"], item["operation_id"]) for item in listed] == [
        ("bob", held["id"]),
        ("carol", held["id"]),
    ]
    assert len((await api.get("conflicts", agent="bob")).expect(200)["items"]) == 1


async def test_check_reports_conflict_and_appends_nothing(api: Api) -> None:
    claim = {"agent": "bob", "action": "respond", "resources": EMAIL}
    assert (await api.post("operations/check", **claim)).expect(200) == {"conflict": None}
    held = await _claim(api)
    found = (await api.post("operations/check", **claim)).expect(200)["conflict"]
    assert found["operation_id"] == held["id"]
    events = (await api.get("events", after=held["position"])).expect(200)
    assert events["items"] == []


async def test_heartbeat_restarts_conflict_window_and_timeout(api: Api) -> None:
    held = await _claim(api)
    renewed = (await api.post(f"operations/{held['id']}/heartbeat")).expect(200)
    assert renewed["expires_at"] > held["expires_at"]
    assert renewed["blocks_until"] > held["blocks_until"]


async def test_finishing_frees_resources_and_records_tokens(api: Api) -> None:
    held = await _claim(api)
    done = await api.post(f"operations/{held['id']}/finish", outcome="succeeded", tokens_used=450)
    assert done.expect(200)["tokens_used"] == 450
    assert (await api.get("budget")).expect(200)["agents"]["ada"]["used"] == 450
    await _claim(api, "bob")


async def test_finished_operation_refuses_finish_and_heartbeat(api: Api) -> None:
    held = await _claim(api)
    (await api.post(f"operations/{held['id']}/finish", outcome="failed")).expect(200)
    (await api.post(f"operations/{held['id']}/finish", outcome="failed")).expect(409, "operation_finished")
    (await api.post(f"operations/{held['id']}/heartbeat")).expect(409, "operation_finished")


async def test_expired_operation_refuses_heartbeat_and_finish(api: Api) -> None:
    held = await _claim(api, ttl_seconds=0.05)

    async def expired() -> bool:
        listed = (await api.get("operations", state="expired")).expect(200)["items"]
        return [item["id"] for item in listed] == [held["id"]]

    await eventually(expired)
    (await api.post(f"operations/{held['id']}/heartbeat")).expect(410, "operation_expired")
    finish = await api.post(f"operations/{held['id']}/finish", outcome="succeeded")
    finish.expect(410, "operation_expired")


async def test_claim_no_longer_blocks_after_the_conflict_window(database: str) -> None:
    async with running_service(database, conflict_window_seconds=0.1) as service:
        await _claim(service.api)

        async def granted() -> bool:
            answer = await service.api.post("operations", agent="bob", action="respond", resources=EMAIL)
            return answer.status == 201

        await eventually(granted)


async def test_unknown_operations_are_not_found(api: Api) -> None:
    (await api.post(f"operations/{UNKNOWN}/heartbeat")).expect(404, "operation_not_found")
    answer = await api.post(f"operations/{UNKNOWN}/finish", outcome="cancelled")
    answer.expect(404, "operation_not_found")


async def test_operations_are_listed_by_state_and_agent(api: Api) -> None:
    active = await _claim(api)
    finished = await _claim(api, "bob", resources={"emailId": "other"})
    await api.post(f"operations/{finished['id']}/finish", outcome="cancelled")

    async def listed(**query: object) -> list[str]:
        return [item["id"] for item in (await api.get("operations", **query)).expect(200)["items"]]

    assert await listed() == [active["id"], finished["id"]]
    assert await listed(state="active") == [active["id"]]
    assert await listed(state="finished") == [finished["id"]]
    assert await listed(state="active,finished", agent="bob") == [finished["id"]]
    assert await listed(state="active", agent="bob") == []
    assert await listed(state="active", after=active["fencing_token"]) == []
