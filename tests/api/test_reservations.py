"""Open reservations, as a list and one by one: those that can be settled."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from service.scheduling import timekeeper
from tests.api.client import running_service
from tests.api.inputs import UNKNOWN_ID
from tests.support.wait import eventually

if TYPE_CHECKING:
    import pytest

    from tests.api.client import Api

HOUR = 3_600


async def _reserve(api: Api, agent: str, tokens: int = 10, **more: object) -> dict[str, Any]:
    return (await api.post("budget/reservations", agent=agent, tokens=tokens, **more)).expect(201)


async def _ids(api: Api, **query: object) -> list[str]:
    items = (await api.get("budget/reservations", **query)).expect(200)["items"]
    return [item["id"] for item in items]


async def test_open_reservations_are_listed_when_they_are_made(api: Api) -> None:
    made = await _reserve(api, "ada", 500)
    [listed] = (await api.get("budget/reservations")).expect(200)["items"]
    assert listed == (await api.get(f"budget/reservations/{made['id']}")).expect(200)
    assert (listed["agent"], listed["tokens"], listed["state"]) == ("ada", 500, "active")
    assert (listed["expires_at"], listed["position"]) == (made["expires_at"], made["position"])


async def test_reservations_are_those_of_one_agent_when_it_is_named(api: Api) -> None:
    made = [(await _reserve(api, agent))["id"] for agent in ("ada", "bob", "ada")]
    assert await _ids(api) == made
    assert await _ids(api, agent="ada") == [made[0], made[2]]
    assert await _ids(api, agent="ada", after=(await _first(api))["position"]) == [made[2]]
    assert await _ids(api, agent="nobody") == []


async def _first(api: Api) -> dict[str, Any]:
    page = (await api.get("budget/reservations", limit=1)).expect(200)
    assert page["next"] == page["items"][0]["position"]
    return dict(page["items"][0])


async def test_open_reservations_are_found_in_their_order_when_the_service_starts_again(
    database: str,
) -> None:
    async with running_service(database) as service:
        # Their order is not that of their ends.
        lives = (HOUR, 10 * HOUR, 5 * HOUR)
        made = [(await _reserve(service.api, "ada", ttl_seconds=life))["id"] for life in lives]
        (await service.api.post(f"budget/reservations/{made[0]}/settle", tokens_used=1)).expect(200)
    async with running_service(database) as service:
        assert await _ids(service.api, agent="ada") == made[1:]
        for id_ in made[1:]:
            (await service.api.post(f"budget/reservations/{id_}/settle", tokens_used=1)).expect(200)
        assert await _ids(service.api) == []


async def test_a_reservation_is_answered_as_its_settlement_when_it_has_ended(api: Api) -> None:
    settled, released, kept = [await _reserve(api, "ada") for _ in range(3)]
    expired = await _reserve(api, "ada", ttl_seconds=0.05)
    (await api.post(f"budget/reservations/{settled['id']}/settle", tokens_used=5)).expect(200)
    (await api.delete(f"budget/reservations/{released['id']}")).expect(200)

    async def is_over() -> bool:
        return (await api.get(f"budget/reservations/{expired['id']}")).status != 200

    await eventually(is_over)
    how = {
        settled["id"]: ("settled", 5),
        released["id"]: ("released", None),
        expired["id"]: (None, None),
        UNKNOWN_ID: (None, None),
    }
    for id_, status, code in (
        (settled["id"], 409, "reservation_ended"),
        (released["id"], 409, "reservation_ended"),
        (expired["id"], 410, "reservation_expired"),
        (UNKNOWN_ID, 404, "reservation_not_found"),
    ):
        shown = (await api.get(f"budget/reservations/{id_}")).expect(status, code)
        told = await api.post(f"budget/reservations/{id_}/settle", tokens_used=1)
        assert told.expect(status, code)["detail"] == shown["detail"]
        assert (told.body.get("state"), told.body.get("tokens_used")) == how[id_]
        assert (shown.get("state"), shown.get("tokens_used")) == how[id_]
        assert id_ not in await _ids(api)
    (await api.get(f"budget/reservations/{kept['id']}")).expect(200)


async def test_a_reservation_is_over_when_its_end_has_passed_but_is_not_recorded(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timekeeper, "CLOCK_STEP", timedelta(hours=1))
    async with running_service(database) as service:
        kept = await _reserve(service.api, "ada", ttl_seconds=HOUR)
        path = f"budget/reservations/{(await _reserve(service.api, 'ada', ttl_seconds=0.05))['id']}"

        async def is_over() -> bool:
            return (await service.api.get(path)).status != 200

        await eventually(is_over)
        (await service.api.get(path)).expect(410, "reservation_expired")
        assert await _ids(service.api) == [kept["id"]]
        assert (await service.api.get("events", type="tokens_released")).expect(200)["items"] == []


async def test_one_process_shows_what_another_reserved_when_its_position_is_named(database: str) -> None:
    async with running_service(database) as one, running_service(database) as other:
        made = await _reserve(one.api, "ada")
        query = {"min_position": made["position"]}
        shown = (await other.api.get(f"budget/reservations/{made['id']}", **query)).expect(200)
        assert shown["position"] == made["position"]
        assert await _ids(other.api, **query) == [made["id"]]
        gone = (await other.api.delete(f"budget/reservations/{made['id']}")).expect(200)
        assert await _ids(one.api, min_position=gone["position"]) == []
