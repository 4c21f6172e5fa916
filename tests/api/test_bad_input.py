"""Bad input is refused with a stable code that names the field; nothing is appended, nothing breaks."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from service.http.routes import ROUTES
from tests.api.client import Answer, Service, assert_as_documented
from tests.api.inputs import UNKNOWN_ID, Bad, Target, bad_bodies, targets

# One service takes it all, as a real one would have to.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _send(service: Service, target: Target, bad: Bad) -> Answer:
    async with service.api.session.request(
        target.method,
        target.path,
        data=io.BytesIO(bad.body),
        headers={"Content-Type": "application/json"},
    ) as response:
        answer = Answer(response.status, json.loads(await response.read()), response.headers)
    assert_as_documented(target.method, target.path, answer)
    return answer


def _faults(answer: Answer) -> list[dict[str, str]]:
    faults: Any = answer.body.get("errors") or answer.body.get("details")
    assert isinstance(faults, list), answer
    return faults


@pytest.mark.parametrize("target", targets(), ids=str)
async def test_nothing_bad_gets_through(shared: Service, target: Target) -> None:
    head = await shared.head()
    for bad in bad_bodies(target):
        answer = await _send(shared, target, bad)
        assert 400 <= answer.status < 500, (bad.what, answer)
        if bad.code != "validation_failed":
            assert bad.code == (answer.body.get("code") or answer.body["details"]["code"]), bad.what
            continue
        faults = _faults(answer)
        assert answer.body.get("code", bad.code) == bad.code
        assert all(fault["field"] and fault["message"] for fault in faults)
        assert len(faults) <= 20
        named = [fault["field"] for fault in faults]
        assert any(name == bad.field or name.startswith(f"{bad.field}.") for name in named), (
            bad.what,
            named,
        )
    assert await shared.head() == head
    (await shared.api.get("/healthz")).expect(200)
    (await shared.api.get("/readyz")).expect(200)


async def test_of_a_body_with_thousands_of_faults_none_is_told(shared: Service) -> None:
    """To tell twenty, all of them would have to be looked at."""
    faults = {f"field_{number}": number for number in range(5_000)}
    refused = await shared.api.post("messages", from_agent="ada", to_agent="bob", message="m", **faults)
    assert refused.expect(422)["errors"] == [
        {"field": "body", "message": "has 5,000 errors, too many to list"}
    ]
    limits = {f"agent-{number}": -5 for number in range(10_000)}
    inside = await shared.api.put("budget", agent_limits=limits)
    assert inside.expect(422)["errors"] == [
        {"field": "body", "message": "has 10,000 errors, too many to list"}
    ]


async def test_every_route_with_a_body_is_a_target() -> None:
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
async def test_a_refusal_says_what_is_allowed(
    shared: Service, path: str, body: dict[str, object], message: str
) -> None:
    fault = (await shared.api.post(path, **body)).expect(422, "validation_failed")
    assert message in fault["detail"]
    assert message in fault["errors"][0]["message"]


async def test_json_nested_as_deep_as_allowed_comes_back_as_it_went_in(shared: Service) -> None:
    deep: Any = "at the bottom"
    for _ in range(63):
        deep = {"a": deep}
    sent = await shared.api.post("messages", from_agent="diver", message="m", data=deep)
    position = sent.expect(201)["position"]
    [shown] = (await shared.api.get("messages", from_agent="diver")).expect(200)["items"]
    assert shown["data"] == deep
    deeper = {"a": {"a": deep}}
    answer = await shared.api.post("messages", from_agent="diver", message="m", data=deeper)
    assert "64 levels" in answer.expect(422, "validation_failed")["detail"]
    assert (await shared.api.get(f"events/{position}")).expect(200)["data"]["data"] == deep


def _nested(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


# orjson writes about 254 levels and reads 1,024.
@pytest.mark.parametrize("levels", [100, 253, 300, 900])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "deep"}])
@pytest.mark.parametrize("path", ["messages", "batch", "jobs/deep/run", "/api/squad"])
async def test_json_that_could_be_read_and_not_written_again_is_refused(
    shared: Service, path: str, headers: dict[str, str], levels: int
) -> None:
    message = {"from_agent": "diver", "message": "m", "data": {"a": _nested(levels)}}
    command = {"method": "POST", "path": "/api/v1/messages", "body": message}
    body = {"commands": [command]} if path == "batch" else message
    answer = await shared.api.post(path, headers, **body)
    fault = answer.expect(400 if path == "/api/squad" else 422)
    assert "must not be nested deeper than 100 levels" in str(fault)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "deep-but-allowed"}])
async def test_a_batch_holds_what_is_nested_as_deep_as_allowed(
    shared: Service, headers: dict[str, str]
) -> None:
    body = {"from_agent": "diver", "message": "m", "data": {"a": _nested(63)}}
    commands = [{"method": "POST", "path": "/api/v1/messages", "body": body}] * 50
    results = (await shared.api.post("batch", headers, commands=commands)).expect(200)["results"]
    assert {result["status"] for result in results} == {201}


async def test_numbers_at_the_edge_come_back_as_they_went_in(shared: Service) -> None:
    data = {"large": 2**64 - 1, "small": -(2**63), "tiny": 5e-324, "float": 0.1, "zero": -0.0}
    (await shared.api.post("messages", from_agent="counter", message="m", data=data)).expect(201)
    [shown] = (await shared.api.get("messages", from_agent="counter")).expect(200)["items"]
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
async def test_a_malformed_id_is_refused_by_name(shared: Service, path: str, id_: str) -> None:
    head = await shared.head()
    bodies: dict[str, dict[str, object]] = {
        "ack": {"agent": "a"},
        "finish": {"outcome": "failed"},
        "settle": {"tokens_used": 1},
    }
    answer = await shared.api.post(path.format(id_), **bodies.get(path.rpartition("/")[2], {}))
    fault = answer.expect(422, "validation_failed")
    assert fault["errors"][0]["message"] == "must be a UUID"
    assert await shared.head() == head


async def test_a_field_of_the_path_is_refused_in_the_body(shared: Service) -> None:
    fault = (await shared.api.put("agents/ada", name="bob", role="writer")).expect(422)
    assert fault["errors"] == [{"field": "name", "message": "must be given in the path, not in the body"}]


async def test_a_body_where_none_belongs_is_refused(shared: Service) -> None:
    answer = await shared.api.ask("DELETE", f"budget/reservations/{UNKNOWN_ID}", {"force": True})
    assert answer.expect(422, "validation_failed")["errors"][0]["field"] == "force"
