"""The budget: limits, reservations, usage and warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api

UNKNOWN = "00000000-0000-7000-8000-000000000000"


async def _reserve(api: Api, tokens: int, **more: object) -> dict[str, Any]:
    body = {"agent": "ada", "tokens": tokens, **more}
    return (await api.post("budget/reservations", **body)).expect(201)


async def _budget(api: Api) -> dict[str, Any]:
    return (await api.get("budget")).expect(200)


async def test_new_squad_has_default_budget(api: Api) -> None:
    shown = await _budget(api)
    assert {name: shown[name] for name in ("total", "used", "reserved", "remaining", "agents")} == {
        "total": 100_000,
        "used": 0,
        "reserved": 0,
        "remaining": 100_000,
        "agents": {},
    }
    assert shown["resets_at"].endswith("Z")


async def test_put_changes_only_given_fields(api: Api) -> None:
    changed = (await api.put("budget", daily_tokens=5_000)).expect(200)
    assert changed["daily_tokens"] == 5_000
    changed = (await api.put("budget", agent_limits={"ada": 300})).expect(200)
    assert (changed["daily_tokens"], changed["agent_limits"]) == (5_000, {"ada": 300})
    shown = await _budget(api)
    assert shown["total"] == 5_000
    assert shown["agents"] == {"ada": {"used": 0, "reserved": 0, "limit": 300, "remaining": 300}}


async def test_reservation_holds_tokens_until_settled_with_actual_usage(api: Api) -> None:
    held = await _reserve(api, 1_000)
    assert held["remaining"] == 99_000
    assert (await _budget(api))["agents"]["ada"]["reserved"] == 1_000
    settled = (await api.post(f"budget/reservations/{held['id']}/settle", tokens_used=400)).expect(200)
    assert (settled["tokens_used"], settled["remaining"]) == (400, 99_600)
    shown = await _budget(api)
    assert (shown["used"], shown["reserved"], shown["remaining"]) == (400, 0, 99_600)


async def test_settled_usage_may_exceed_reservation(api: Api) -> None:
    held = await _reserve(api, 10)
    await api.post(f"budget/reservations/{held['id']}/settle", tokens_used=50)
    assert (await _budget(api))["used"] == 50


async def test_released_reservation_returns_its_tokens(api: Api) -> None:
    held = await _reserve(api, 1_000)
    assert (await api.delete(f"budget/reservations/{held['id']}")).expect(200)["remaining"] == 100_000


async def test_reservation_can_end_only_once(api: Api) -> None:
    held = await _reserve(api, 10)
    path = f"budget/reservations/{held['id']}"
    (await api.post(f"{path}/settle", tokens_used=5)).expect(200)
    (await api.post(f"{path}/settle", tokens_used=5)).expect(409, "reservation_ended")
    (await api.delete(path)).expect(409, "reservation_ended")
    (await api.delete(f"budget/reservations/{UNKNOWN}")).expect(404, "reservation_not_found")
    answer = await api.post(f"budget/reservations/{UNKNOWN}/settle", tokens_used=1)
    answer.expect(404, "reservation_not_found")


async def test_unsettled_reservation_expires_and_returns_its_tokens(api: Api) -> None:
    held = await _reserve(api, 1_000, ttl_seconds=0.05)

    async def tokens_returned() -> bool:
        return bool((await _budget(api))["remaining"] == 100_000)

    await eventually(tokens_returned)
    answer = await api.post(f"budget/reservations/{held['id']}/settle", tokens_used=1)
    answer.expect(410, "reservation_expired")


async def test_reservation_beyond_budget_is_refused_until_the_reset(api: Api) -> None:
    await api.put("budget", daily_tokens=1_000)
    await _reserve(api, 900)
    answer = await api.post("budget/reservations", agent="ada", tokens=101)
    refused = answer.expect(429, "budget_exhausted")
    assert refused["position"] > 0
    assert 1 <= int(answer.headers["Retry-After"]) <= 24 * 3600
    await _reserve(api, 100)


async def test_reservation_beyond_agent_limit_is_refused_only_for_that_agent(api: Api) -> None:
    await api.put("budget", agent_limits={"ada": 100})
    answer = await api.post("budget/reservations", agent="ada", tokens=101)
    assert "no more than 100" in answer.expect(429, "agent_limit_reached")["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    await _reserve(api, 1)
    answer = await api.post("budget/reservations", agent="ada", tokens=100)
    answer.expect(429, "agent_limit_reached")
    assert int(answer.headers["Retry-After"]) > 0
    await _reserve(api, 101, agent="bob")


async def test_check_answers_like_a_reservation_and_appends_nothing(api: Api) -> None:
    changed = (await api.put("budget", daily_tokens=1_000, agent_limits={"ada": 100})).expect(200)

    async def checked(agent: str, tokens: int) -> dict[str, Any]:
        return (await api.post("budget/check", agent=agent, tokens=tokens)).expect(200)

    assert await checked("ada", 100) == {"allowed": True, "reason": None, "remaining": 100}
    assert await checked("ada", 101) == {
        "allowed": False,
        "reason": "agent_limit_reached",
        "remaining": 100,
    }
    assert await checked("bob", 1_001) == {
        "allowed": False,
        "reason": "budget_exhausted",
        "remaining": 1_000,
    }
    assert (await api.get("events", after=changed["position"])).expect(200)["items"] == []


async def test_usage_is_recorded_even_beyond_budget(api: Api) -> None:
    await api.put("budget", daily_tokens=100)
    used = (await api.post("budget/usage", agent="ada", tokens=150)).expect(201)
    assert (used["tokens"], used["remaining"]) == (150, -50)
    shown = await _budget(api)
    assert (shown["used"], shown["remaining"]) == (150, -50)


async def test_usage_is_reported_as_total_or_as_input_and_output_tokens(api: Api) -> None:
    body = {"agent": "ada", "input_tokens": 30, "output_tokens": 12, "model": "small", "task_id": "t"}
    assert (await api.post("budget/usage", **body)).expect(201)["tokens"] == 42
    both = {"agent": "ada", "tokens": 5, "input_tokens": 2, "output_tokens": 3}
    assert (await api.post("budget/usage", **both)).expect(201)["tokens"] == 5
    [_, event] = (await api.get("events", type="tokens_used")).expect(200)["items"]
    assert event["data"]["tokens"] == 5


async def test_each_budget_threshold_is_recorded_once(api: Api) -> None:
    await api.put("budget", daily_tokens=100)
    for _ in range(6):
        await api.post("budget/usage", agent="ada", tokens=20)
    crossed = (await api.get("events", type="budget_threshold_crossed")).expect(200)["items"]
    assert [(event["data"]["percent"], event["data"]["level"]) for event in crossed] == [
        (50, "info"),
        (75, "warning"),
        (90, "critical"),
    ]
