"""Many writes in one request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
import pytest
from aiohttp import web

from service.http import chunks
from service.http.problems import Problem
from service.http.routes import ROUTES
from service.http.v1 import batch
from service.values import MAX_NAME_CHARACTERS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api, Service

UNKNOWN = "00000000-0000-7000-8000-000000000000"


def _write(method: str, path: str, **body: object) -> dict[str, object]:
    return {"method": method, "path": f"/api/v1/{path}", "body": body}


def _message(text: str) -> dict[str, object]:
    return _write("POST", "messages", from_agent="ada", message=text)


async def _batch(
    api: Api, *commands: dict[str, object], headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    results = (await api.post("batch", headers, commands=commands)).expect(200)["results"]
    assert len(results) == len(commands)
    return list(results)


@pytest.mark.nothing_sealed
async def test_commands_are_decided_in_order(api: Api) -> None:
    results = await _batch(
        api,
        _write("PUT", "agents/ada", role="writer"),
        _write("POST", "operations", agent="ada", action="a", resources={"emailId": "e"}),
        _write("POST", "operations", agent="bob", action="b", resources={"emailId": "e"}),
        _write("PUT", "budget", daily_tokens=10),
        _write("POST", "budget/reservations", agent="ada", tokens=11),
        _write("POST", "budget/usage", agent="ada", tokens=11),
        _write("POST", "tasks", title="t"),
    )
    assert [result["status"] for result in results] == [200, 201, 409, 200, 429, 201, 201]
    assert results[2]["body"]["conflict"]["operation_id"] == results[1]["body"]["id"]
    positions = [result["body"]["position"] for result in results]
    assert positions == sorted(positions)


async def _large_email(api: Api) -> str:
    """The id of a new e-mail of 500 KB, all of which every answer to a change repeats."""
    email = await api.post(
        "emails", gmail_message_id="m", from_email="a@b.test", payload={"text": "x" * 500_000}
    )
    return str(email.expect(201)["id"])


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send even small answers in chunks: large ones are slow, above all if they are encrypted."""
    monkeypatch.setattr(batch, "PAGE_BYTES", 100_000)


@pytest.mark.usefixtures("small_pages")
async def test_large_answer_is_sent_in_chunks(api: Api) -> None:
    """The answer and the events of a small batch can be a thousand times as large as the request."""
    email = await _large_email(api)
    statuses = ["classified", "sent"] * 2
    changes = [_write("PATCH", f"emails/{email}", status=status) for status in statuses]
    chunked = await api.post("batch", commands=changes)
    assert chunked.headers["Transfer-Encoding"] == "chunked"
    results = chunked.expect(200)["results"]
    assert [result["body"]["status"] for result in results] == statuses
    assert {len(result["body"]["payload"]["text"]) for result in results} == {500_000}
    answer = await api.post("batch", commands=[_message("still here")])
    assert answer.expect(200)["results"][0]["status"] == 201


@pytest.mark.usefixtures("small_pages")
async def test_client_that_does_not_read_large_answer_is_dropped(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SEND_SECONDS", 0.2)
    email = await _large_email(service.api)
    statuses = ["classified", "sent"] * 2
    changes = [_write("PATCH", f"emails/{email}", status=status) for status in statuses]
    body = orjson.dumps({"commands": changes})
    address = urlsplit(service.url)
    with socket.socket() as client:
        # Have the kernel buffer as little of the answer as possible.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        client.connect((address.hostname, address.port))
        head = (
            "POST /api/v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        await eventually(partial(_is_answered, service))
        client.settimeout(10)
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := await asyncio.to_thread(client.recv, 2**20):
                taken += len(chunk)
    assert taken < len(statuses) * 500_000


@pytest.mark.usefixtures("small_pages")
async def test_client_that_does_not_read_end_of_large_answer_is_dropped(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SEND_SECONDS", 1.0)
    write_eof = web.StreamResponse.write_eof
    has_waited = asyncio.Event()

    async def wait_for_room(self: web.StreamResponse, data: bytes = b"") -> None:
        """Wait once, as aiohttp does when the client has not read enough of the answer."""
        if not has_waited.is_set():
            has_waited.set()
            await asyncio.Event().wait()
        await write_eof(self, data)

    monkeypatch.setattr(web.StreamResponse, "write_eof", wait_for_room)
    email = await _large_email(api)
    changes = [_write("PATCH", f"emails/{email}", status=status) for status in ["classified", "sent"] * 2]
    with pytest.raises(aiohttp.ClientError):
        await api.post("batch", commands=changes)
    assert has_waited.is_set()


async def _is_answered(service: Service) -> bool:
    """Whether the service has answered the batch."""
    async with service.api.session.get("/metrics") as response:
        shown = await response.text()
    return 'squad_http_requests_total{route="/api/v1/batch",status="200"} 1.0' in shown


def _raised_problems() -> list[Problem]:
    return [item for item in gc.get_objects() if isinstance(item, Problem) and item.__traceback__]


async def test_invalid_commands_leave_nothing_in_memory(api: Api) -> None:
    """An exception in a reference cycle would keep the whole body in memory."""
    gc.collect()
    gc.disable()
    try:
        results = await _batch(api, _write("POST", "nowhere"), _write("POST", "messages"), _message("m"))
        assert [result["status"] for result in results] == [404, 422, 201]
        (await api.post("messages", from_agent="ada")).expect(422)
        await eventually(lambda: not _raised_problems())
    finally:
        gc.enable()


async def test_refused_or_invalid_command_does_not_stop_the_others(api: Api) -> None:
    results = await _batch(
        api,
        _message("first"),
        _write("POST", "messages", from_agent="ada"),
        _write("POST", f"messages/{UNKNOWN}/ack", agent="ada"),
        _write("POST", "nowhere"),
        _write("DELETE", "messages"),
        _write("POST", "tasks?x=1", title="t"),
        _write("POST", "batch", commands=[]),
        _write("PUT", "agents/%FF", role="writer"),
        {"method": "PATCH", "path": "/api/squad", "body": {}},
        _message("last"),
    )
    codes = [(result["status"], result["body"].get("code")) for result in results]
    assert codes == [
        (201, None),
        (422, "validation_failed"),
        (404, "message_not_found"),
        (404, "not_found"),
        (404, "not_found"),
        (404, "not_found"),
        (404, "not_found"),
        (400, "bad_request"),
        (404, "not_found"),
        (201, None),
    ]
    listed = (await api.get("messages")).expect(200)["items"]
    assert [item["message"] for item in listed] == ["first", "last"]


@pytest.mark.nothing_sealed
async def test_path_of_command_is_decoded_like_path_of_request(api: Api) -> None:
    [result] = await _batch(api, _write("PUT", "agents/a%2Fb%20c", role="writer"))
    assert result["body"]["name"] == "a/b c"


@pytest.mark.parametrize("letter", ["x", "ж", "漢", "😀"], ids=["1 byte", "2 bytes", "3 bytes", "4 bytes"])
@pytest.mark.nothing_sealed
async def test_path_of_command_may_have_an_agent_name_of_maximum_length(api: Api, letter: str) -> None:
    name = letter * MAX_NAME_CHARACTERS
    (await api.put(f"agents/{quote(name)}", role="writer")).expect(200)
    [result] = await _batch(api, _write("POST", f"agents/{quote(name)}/heartbeat"))
    assert (result["status"], result["body"]["name"]) == (200, name)


@pytest.mark.parametrize("more", ["?", "?dry_run=true", "#now"])
@pytest.mark.nothing_sealed
async def test_path_of_command_must_not_have_query_or_fragment(service: Service, more: str) -> None:
    head = await service.head()
    [result] = await _batch(service.api, _write("PUT", f"agents/ada{more}", role="writer"))
    assert (result["status"], result["body"]["code"]) == (404, "not_found")
    assert await service.head() == head
    [escaped] = await _batch(service.api, _write("PUT", "agents/ada%3F%23", role="writer"))
    assert escaped["body"]["name"] == "ada?#"


async def test_batch_holds_one_to_a_thousand_commands(service: Service) -> None:
    commands = [_message(f"m{number}") for number in range(1_000)]
    results = await _batch(service.api, *commands)
    assert {result["status"] for result in results} == {201}
    positions = [result["body"]["position"] for result in results]
    assert positions == list(range(positions[0], positions[0] + 1_000))
    head = await service.head()
    answer = await service.api.post("batch", commands=[*commands, _message("one more")])
    error = answer.expect(422, "validation_failed")
    assert error["errors"][0]["field"] == "commands"
    (await service.api.post("batch", commands=[])).expect(422, "validation_failed")
    assert await service.head() == head


async def test_all_events_of_batch_have_the_same_correlation_id(api: Api) -> None:
    headers = {"X-Correlation-Id": "bulk"}
    results = await _batch(api, _message("one"), _message("two"), headers=headers)
    for result in results:
        event = (await api.get(f"events/{result['body']['position']}")).expect(200)
        assert event["correlation_id"] == "bulk"


async def test_repeated_batch_gets_the_first_answers(service: Service) -> None:
    key = {"Idempotency-Key": "k" * 200}
    commands = (
        _message("one"),
        _write("POST", "budget/reservations", agent="ada", tokens=10**9),
        _message("two"),
    )
    first = await _batch(service.api, *commands, headers=key)
    head = await service.head()
    assert await _batch(service.api, *commands, headers=key) == first
    assert await service.head() == head


async def test_other_batch_with_the_same_idempotency_key_is_refused_whole(service: Service) -> None:
    key = {"Idempotency-Key": "k"}
    await _batch(service.api, _message("one"), headers=key)
    head = await service.head()
    answer = await service.api.post("batch", key, commands=[_message("one"), _message("two")])
    answer.expect(409, "idempotency_mismatch")
    assert await service.head() == head


async def test_batch_with_idempotency_key_of_single_request_is_refused_whole(service: Service) -> None:
    key = {"Idempotency-Key": "k"}
    (await service.api.post("messages", key, from_agent="ada", message="one")).expect(201)
    head = await service.head()
    answer = await service.api.post("batch", key, commands=[_message("one")])
    answer.expect(409, "idempotency_mismatch")
    assert await service.head() == head


async def test_single_request_with_idempotency_key_of_batch_is_refused(service: Service) -> None:
    key = {"Idempotency-Key": "k"}
    # The first command appends no event, so its answer is not stored either.
    await _batch(service.api, _write("POST", "messages/x/ack", agent="ada"), _message("one"), headers=key)
    head = await service.head()
    answer = await service.api.post("messages", key, from_agent="ada", message="one")
    assert "'k'" in answer.expect(409, "idempotency_mismatch")["detail"]
    assert await service.head() == head


async def test_keys_of_clients_do_not_collide_with_keys_derived_for_commands(service: Service) -> None:
    await _batch(service.api, _message("one"), headers={"Idempotency-Key": "k"})
    for key in ("k/0", "batch:0"):
        headers = {"Idempotency-Key": key}
        (await service.api.post("messages", headers, from_agent="ada", message="two")).expect(201)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        ({"method": "GET", "path": "/api/v1/tasks"}, "commands.0.method"),
        ({"path": "/api/v1/tasks"}, "commands.0.method"),
        ({"method": "POST"}, "commands.0.path"),
        ({"method": "POST", "path": 7}, "commands.0.path"),
        ({"method": "POST", "path": "/" * 2_001}, "commands.0.path"),
        ({"method": "POST", "path": "/api/v1/tasks", "body": []}, "commands.0.body"),
        ({"method": "POST", "path": "/api/v1/tasks", "body": {}, "headers": {}}, "commands.0.headers"),
        ("POST /api/v1/tasks", "commands.0"),
    ],
)
@pytest.mark.nothing_sealed
async def test_malformed_command_fails_the_whole_batch(
    service: Service, command: object, field: str
) -> None:
    head = await service.head()
    answer = await service.api.post("batch", commands=[command, _message("fine")])
    error = answer.expect(422, "validation_failed")
    assert error["errors"][0]["field"] == field
    assert await service.head() == head


@pytest.mark.nothing_sealed
async def test_malformed_batch_is_described_in_terms_of_the_api(service: Service) -> None:
    answer = await service.api.post("batch", commands=["POST /api/v1/tasks"])
    error = answer.expect(422, "validation_failed")
    assert error["detail"] == "commands.0: must be an object, with names and values"
    for commands in ([], [_message("one too many")] * 1_001):
        error = (await service.api.post("batch", commands=commands)).expect(422, "validation_failed")
        assert error["detail"].startswith("commands: must have ")


@pytest.mark.nothing_sealed
async def test_every_write_route_can_be_batched(api: Api) -> None:
    writes = [route for route in ROUTES if route.write]
    commands: list[dict[str, object]] = [
        {"method": route.method, "path": route.path.replace("{id}", UNKNOWN).replace("{name}", "ada")}
        for route in writes
    ]
    for route, result in zip(writes, await _batch(api, *commands), strict=True):
        assert result["body"].get("code") != "not_found", route


@pytest.mark.nothing_sealed
def test_only_forgetting_cannot_be_batched() -> None:
    not_writes = ("/check", "/whatif", "/batch")
    single = [
        route.path
        for route in ROUTES
        if route.method != "GET"
        and route.path.startswith("/api/v1")
        and not route.path.endswith(not_writes)
        if route.write is None
    ]
    assert single == ["/api/v1/subjects/forget"]


async def test_batched_job_commands_are_answered_like_single_requests(api: Api) -> None:
    spec = {"task": "token_monitor", "every": "300d"}
    results = await _batch(
        api,
        _write("PUT", "jobs/watch%20all", **spec),
        _write("POST", "jobs/watch%20all/run"),
        _write("POST", "jobs/nobody/run"),
        _write("POST", "jobs/watch%20all/run", now=True),
        _write("PUT", "jobs/watch", **spec, name="watch"),
        _write("PUT", f"jobs/{'n' * 101}", **spec),
    )
    single = [
        await api.put("jobs/watch", **spec),
        await api.post("jobs/watch/run"),
        await api.post("jobs/nobody/run"),
        await api.post("jobs/watch/run", now=True),
        await api.put("jobs/watch", **spec, name="watch"),
        await api.put(f"jobs/{'n' * 101}", **spec),
    ]
    assert [result["status"] for result in results] == [200, 202, 404, 422, 422, 422]
    assert [result["status"] for result in results] == [answer.status for answer in single]
    for result, answer in zip(results, single, strict=True):
        assert result["body"].keys() == answer.body.keys()
        assert result["body"].get("detail") == answer.body.get("detail")
    assert (results[1]["body"]["job"], results[1]["body"]["status"]) == ("watch all", "running")

    async def both_done() -> bool:
        items = (await api.get("runs", status="succeeded")).expect(200)["items"]
        return {item["job"] for item in items} == {"watch all", "watch"}

    await eventually(both_done)


async def test_repeated_batch_does_not_run_job_again(api: Api) -> None:
    spec = {"task": "token_monitor", "every": "300d", "overlap": "allow_all"}
    commands = (_write("PUT", "jobs/watch", **spec), _write("POST", "jobs/watch/run"))
    key = {"Idempotency-Key": "once"}
    first = await _batch(api, *commands, headers=key)
    assert await _batch(api, *commands, headers=key) == first
    assert len((await api.get("runs")).expect(200)["items"]) == 1


@pytest.mark.nothing_sealed
async def test_forgetting_in_batch_is_rejected_with_advice_to_send_it_alone(service: Service) -> None:
    head = await service.head()
    results = await _batch(service.api, _write("POST", "subjects/forget", subject="a@example.org"))
    [error] = results[0]["body"]["errors"]
    assert (results[0]["status"], error["field"]) == (422, "path")
    assert error["message"].startswith("send POST /api/v1/subjects/forget alone")
    assert await service.head() == head
