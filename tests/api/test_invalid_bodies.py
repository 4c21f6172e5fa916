"""Invalid bodies are rejected with a stable code and the name of the field, and append nothing."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from service.http.routes import ROUTES
from tests.api.client import Answer, Service, assert_as_documented
from tests.api.inputs import UNKNOWN_ID, InvalidBody, Target, invalid_bodies, targets

# All tests share one service, which has to withstand all of this input.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _send(service: Service, target: Target, invalid: InvalidBody) -> Answer:
    async with service.api.session.request(
        target.method,
        target.path,
        data=io.BytesIO(invalid.body),
        headers={"Content-Type": "application/json"},
    ) as response:
        answer = Answer(response.status, json.loads(await response.read()), response.headers)
    assert_as_documented(target.method, target.path, answer)
    return answer


def _errors(answer: Answer) -> list[dict[str, str]]:
    errors: Any = answer.body.get("errors") or answer.body.get("details")
    assert isinstance(errors, list), answer
    return errors


@pytest.mark.parametrize("target", targets(), ids=str)
async def test_route_rejects_every_invalid_body_and_appends_nothing(
    shared_service: Service, target: Target
) -> None:
    head = await shared_service.head()
    for invalid in invalid_bodies(target):
        answer = await _send(shared_service, target, invalid)
        assert 400 <= answer.status < 500, (invalid.label, answer)
        if invalid.code != "validation_failed":
            assert invalid.code == (answer.body.get("code") or answer.body["details"]["code"]), (
                invalid.label
            )
            continue
        errors = _errors(answer)
        assert answer.body.get("code", invalid.code) == invalid.code
        assert all(error["field"] and error["message"] for error in errors)
        assert len(errors) <= 20
        named = [error["field"] for error in errors]
        assert any(name == invalid.field or name.startswith(f"{invalid.field}.") for name in named), (
            invalid.label,
            named,
        )
    assert await shared_service.head() == head
    (await shared_service.api.get("/healthz")).expect(200)
    (await shared_service.api.get("/readyz")).expect(200)


async def test_errors_are_not_listed_when_there_are_thousands(shared_service: Service) -> None:
    """Even to list only twenty, all of them would have to be examined."""
    errors = {f"field_{number}": number for number in range(5_000)}
    refused = await shared_service.api.post(
        "messages", from_agent="ada", to_agent="bob", message="m", **errors
    )
    assert refused.expect(422)["errors"] == [
        {"field": "body", "message": "has 5,000 errors, too many to list"}
    ]
    limits = {f"agent-{number}": -5 for number in range(10_000)}
    inside = await shared_service.api.put("budget", agent_limits=limits)
    assert inside.expect(422)["errors"] == [
        {"field": "body", "message": "has 10,000 errors, too many to list"}
    ]


async def test_targets_are_all_routes_with_a_body() -> None:
    assert len(targets()) == sum(route.body is not None for route in ROUTES)
    assert {str(target) for target in targets()} > {"POST /api/v1/batch", "POST /api/squad"}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("budget/usage", {"agent": "ada"}, "name tokens, or both input_tokens and output_tokens"),
        ("budget/usage", {"agent": "ada", "input_tokens": 5}, "name tokens, or both input_tokens and"),
        (
            "budget/usage",
            {"agent": "ada", "tokens": 6, "input_tokens": 2, "output_tokens": 3},
            "tokens must be the sum of input_tokens and output_tokens",
        ),
        ("messages", {"from_agent": "ada", "message": "m", "data": {"a": "\x00"}}, "U+0000"),
        (
            "messages",
            {"from_agent": "a\nb", "message": "m"},
            "one line of text, without control characters",
        ),
        ("messages", {"from_agent": " a", "message": "m"}, "must not begin or end with whitespace"),
        ("messages", {"from_agent": "x" * 101, "message": "m"}, "at most 100 characters"),
        ("budget/reservations", {"agent": "ada", "tokens": -5}, "greater than or equal to 1"),
        ("tasks", {"title": "t", "priority": "asap"}, "'low', 'medium', 'high' or 'urgent'"),
        ("tasks", {"title": "t", "deliverable_url": "x"}, "must be an http or https URL"),
    ],
)
async def test_error_says_what_is_allowed(
    shared_service: Service, path: str, body: dict[str, object], message: str
) -> None:
    error = (await shared_service.api.post(path, **body)).expect(422, "validation_failed")
    assert message in error["detail"]
    assert message in error["errors"][0]["message"]


async def test_json_is_returned_unchanged_up_to_64_levels_and_rejected_beyond(
    shared_service: Service,
) -> None:
    deep: Any = "at the bottom"
    for _ in range(63):
        deep = {"a": deep}
    sent = await shared_service.api.post("messages", from_agent="diver", message="m", data=deep)
    position = sent.expect(201)["position"]
    [shown] = (await shared_service.api.get("messages", from_agent="diver")).expect(200)["items"]
    assert shown["data"] == deep
    deeper = {"a": {"a": deep}}
    answer = await shared_service.api.post("messages", from_agent="diver", message="m", data=deeper)
    assert "64 levels" in answer.expect(422, "validation_failed")["detail"]
    assert (await shared_service.api.get(f"events/{position}")).expect(200)["data"]["data"] == deep


def _nested(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


# orjson reads 1,024 levels of nesting, but writes only about 254.
@pytest.mark.parametrize("levels", [100, 253, 300, 900])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "deep"}])
@pytest.mark.parametrize("path", ["messages", "batch", "jobs/deep/run", "/api/squad"])
async def test_body_nested_deeper_than_100_levels_is_rejected(
    shared_service: Service, path: str, headers: dict[str, str], levels: int
) -> None:
    message = {"from_agent": "diver", "message": "m", "data": {"a": _nested(levels)}}
    command = {"method": "POST", "path": "/api/v1/messages", "body": message}
    body = {"commands": [command]} if path == "batch" else message
    answer = await shared_service.api.post(path, headers, **body)
    error = answer.expect(400 if path == "/api/squad" else 422)
    assert "must not be nested deeper than 100 levels" in str(error)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "deep-but-allowed"}])
async def test_batch_accepts_bodies_nested_as_deep_as_allowed(
    shared_service: Service, headers: dict[str, str]
) -> None:
    body = {"from_agent": "diver", "message": "m", "data": {"a": _nested(63)}}
    commands = [{"method": "POST", "path": "/api/v1/messages", "body": body}] * 50
    results = (await shared_service.api.post("batch", headers, commands=commands)).expect(200)["results"]
    assert {result["status"] for result in results} == {201}


async def test_extreme_numbers_are_returned_unchanged(shared_service: Service) -> None:
    data = {"large": 2**64 - 1, "small": -(2**63), "tiny": 5e-324, "float": 0.1, "zero": -0.0}
    (await shared_service.api.post("messages", from_agent="counter", message="m", data=data)).expect(201)
    [shown] = (await shared_service.api.get("messages", from_agent="counter")).expect(200)["items"]
    assert shown["data"] == data


@pytest.mark.parametrize(
    "path",
    [
        "messages/{}/ack",
        "operations/{}/heartbeat",
        "operations/{}/finish",
        "budget/reservations/{}/settle",
    ],
)
@pytest.mark.parametrize("id_", ["7", "x" * 36, UNKNOWN_ID[:-1], f"{UNKNOWN_ID}0", "%00", "{}", "%20"])
async def test_malformed_id_is_rejected(shared_service: Service, path: str, id_: str) -> None:
    head = await shared_service.head()
    bodies: dict[str, dict[str, object]] = {
        "ack": {"agent": "a"},
        "finish": {"outcome": "failed"},
        "settle": {"tokens_used": 1},
    }
    answer = await shared_service.api.post(path.format(id_), **bodies.get(path.rpartition("/")[2], {}))
    error = answer.expect(422, "validation_failed")
    assert error["errors"][0]["message"] == "must be a UUID"
    assert await shared_service.head() == head


async def test_field_of_path_is_rejected_in_body(shared_service: Service) -> None:
    error = (await shared_service.api.put("agents/ada", name="bob", role="writer")).expect(422)
    assert error["errors"] == [{"field": "name", "message": "must be given in the path, not in the body"}]


async def test_field_is_rejected_where_no_body_is_expected(shared_service: Service) -> None:
    answer = await shared_service.api.ask("DELETE", f"budget/reservations/{UNKNOWN_ID}", {"force": True})
    assert answer.expect(422, "validation_failed")["errors"][0]["field"] == "force"
