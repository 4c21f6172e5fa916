"""A request repeated with its idempotency key gets the first answer, whatever has happened since."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.api.client import Answer, Service, running_service
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api

KEY = {"Idempotency-Key": "4f2f6e1f"}
CLAIM = {"agent": "bob", "action": "archive", "resources": {"emailId": "e"}}
RESERVATION = {"agent": "bob", "tokens": 10**9}


def _content(answer: Answer) -> tuple[int, object, str | None, str]:
    headers = answer.headers
    return answer.status, answer.body, headers.get("Retry-After"), headers["Content-Type"]


async def test_repeated_post_gets_the_first_answer_and_takes_effect_once(service: Service) -> None:
    first = await service.api.post("messages", KEY, from_agent="ada", message="hello")
    head = await service.head()
    again = await service.api.post("messages", KEY, from_agent="ada", message="hello")
    assert _content(again) == _content(first)
    assert await service.head() == head


@pytest.mark.parametrize(
    ("path", "body", "other"),
    [
        ("messages", {"from_agent": "ada", "message": "m"}, {"message": "n"}),
        pytest.param("budget/reservations", RESERVATION, {"tokens": 1}, marks=pytest.mark.nothing_sealed),
    ],
    ids=["accepted", "refused"],
)
async def test_only_a_repeat_is_marked_as_one(
    api: Api, path: str, body: dict[str, object], other: dict[str, object]
) -> None:
    def marks(answer: Answer) -> str | None:
        return answer.headers.get("Idempotent-Replayed")

    assert marks(await api.post(path, KEY, **body)) is None
    assert marks(await api.post(path, KEY, **body)) == "true"
    assert marks(await api.post(path, **body)) is None
    mismatch = await api.post(path, KEY, **{**body, **other})
    mismatch.expect(409, "idempotency_mismatch")
    assert marks(mismatch) is None


async def test_a_repeat_to_the_first_api_is_marked_as_one(service: Service) -> None:
    body = {"action": "orchestrator-message", "fromAgent": "ada", "message": "m"}
    for mark in (None, "true"):
        answer = await service.api.ask("POST", "/api/squad", body, headers=KEY)
        assert (answer.status, answer.headers.get("Idempotent-Replayed")) == (200, mark)


@pytest.mark.nothing_sealed
async def test_a_heartbeat_without_a_key_tells_whether_a_repeated_claim_is_still_held(
    database: str,
) -> None:
    async with running_service(database, conflict_window_seconds=0.1) as service:
        api = service.api
        first = (await api.post("operations", KEY, **CLAIM)).expect(201)

        async def is_taken() -> bool:
            return (await api.post("operations", **{**CLAIM, "agent": "ada"})).status == 201

        await eventually(is_taken)
        again = await api.post("operations", KEY, **CLAIM)
        assert again.expect(201) == first
        assert again.headers["Idempotent-Replayed"] == "true"
        (await api.post(f"operations/{first['id']}/heartbeat")).expect(409, "conflict")


async def test_concurrent_repeats_take_effect_once(api: Api) -> None:
    answers = await asyncio.gather(
        *(api.post("messages", KEY, from_agent="ada", message="hello") for _ in range(20))
    )
    assert len({str(_content(answer)) for answer in answers}) == 1
    assert len((await api.get("messages")).expect(200)["items"]) == 1


async def test_answers_and_refusals_survive_a_restart(database: str) -> None:
    async with running_service(database) as service:
        api = service.api
        held = (await api.post("operations", **{**CLAIM, "agent": "ada"})).expect(201)
        sent = await api.post("messages", {"Idempotency-Key": "sent"}, from_agent="ada", message="m")
        conflict = await api.post("operations", {"Idempotency-Key": "conflict"}, **CLAIM)
        denied = await api.post("budget/reservations", {"Idempotency-Key": "denied"}, **RESERVATION)
        assert (sent.status, conflict.status, denied.status) == (201, 409, 429)
        await api.post(f"operations/{held['id']}/finish", outcome="cancelled")
        await api.put("budget", daily_tokens=10**10)
    async with running_service(database) as service:
        api = service.api
        head = await service.head()
        again = await api.post("messages", {"Idempotency-Key": "sent"}, from_agent="ada", message="m")
        assert _content(again) == _content(sent)
        assert _content(await api.post("operations", {"Idempotency-Key": "conflict"}, **CLAIM)) == _content(
            conflict
        )
        repeated = await api.post("budget/reservations", {"Idempotency-Key": "denied"}, **RESERVATION)
        assert _content(repeated) == _content(denied)
        assert await service.head() == head


async def test_other_body_or_path_with_the_same_key_is_refused(service: Service) -> None:
    api = service.api
    (await api.post("messages", KEY, from_agent="ada", message="hello")).expect(201)
    head = await service.head()
    refused = await api.post("messages", KEY, from_agent="ada", message="other")
    refused.expect(409, "idempotency_mismatch")
    (await api.post("tasks", KEY, title="other")).expect(409, "idempotency_mismatch")
    facade = await api.post("/api/squad", KEY, action="orchestrator-shutdown")
    assert facade.expect(409)["details"] == {"code": "idempotency_mismatch"}
    assert await service.head() == head


async def test_seed_facade_accepts_idempotency_keys(service: Service) -> None:
    message = {"action": "orchestrator-message", "fromAgent": "ada", "message": "hello"}
    first = await service.api.post("/api/squad", KEY, **message)
    head = await service.head()
    assert _content(await service.api.post("/api/squad", KEY, **message)) == _content(first)
    assert await service.head() == head


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("operations/check", CLAIM),
        ("budget/check", {"agent": "ada", "tokens": 5}),
        ("agents/nobody/heartbeat", {}),
        ("messages", {"wrong": True}),
    ],
)
@pytest.mark.nothing_sealed
async def test_key_has_no_effect_when_request_appends_nothing(
    api: Api, path: str, body: dict[str, object]
) -> None:
    without = await api.post(path, **body)
    assert _content(await api.post(path, KEY, **body)) == _content(without)
    assert _content(await api.post(path, KEY, **body)) == _content(without)
