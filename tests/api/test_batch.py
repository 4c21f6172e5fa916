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
    """The id of an e-mail that each change of it repeats."""
    email = await api.post(
        "emails", gmail_message_id="m", from_email="a@b.test", payload={"text": "x" * 500_000}
    )
    return str(email.expect(201)["id"])


@pytest.fixture
def soon_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little counts as large. Much takes long on a busy machine, the longer where it is encrypted."""
    monkeypatch.setattr(batch, "PAGE_BYTES", 100_000)


@pytest.mark.usefixtures("soon_in_pieces")
async def test_answers_that_are_large_together_leave_in_pieces(api: Api) -> None:
    """A small batch can have an answer, and events, a thousand times as large."""
    email = await _large_email(api)
    statuses = ["classified", "sent"] * 2
    changes = [_write("PATCH", f"emails/{email}", status=status) for status in statuses]
    respond_in_chunks = await api.post("batch", commands=changes)
    assert respond_in_chunks.headers["Transfer-Encoding"] == "chunked"
    results = respond_in_chunks.expect(200)["results"]
    assert [result["body"]["status"] for result in results] == statuses
    assert {len(result["body"]["payload"]["text"]) for result in results} == {500_000}
    answer = await api.post("batch", commands=[_message("still here")])
    assert answer.expect(200)["results"][0]["status"] == 201


@pytest.mark.usefixtures("soon_in_pieces")
async def test_a_client_that_does_not_take_a_large_answer_is_dropped(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SEND_SECONDS", 0.2)
    email = await _large_email(service.api)
    statuses = ["classified", "sent"] * 2
    changes = [_write("PATCH", f"emails/{email}", status=status) for status in statuses]
    body = orjson.dumps({"commands": changes})
    address = urlsplit(service.url)
    with socket.socket() as deaf:
        # The system takes as little as possible on its behalf, and sends as little ahead.
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        deaf.connect((address.hostname, address.port))
        head = (
            "POST /api/v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        deaf.sendall(head.encode() + body)
        await eventually(partial(_is_answered, service))
        deaf.settimeout(10)
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := await asyncio.to_thread(deaf.recv, 2**20):
                taken += len(chunk)
    assert taken < len(statuses) * 500_000


@pytest.mark.usefixtures("soon_in_pieces")
async def test_a_client_that_does_not_take_the_end_of_it_is_dropped_too(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SEND_SECONDS", 1.0)
    ends = web.StreamResponse.write_eof
    has_waited = asyncio.Event()

    async def waits_for_room(self: web.StreamResponse, data: bytes = b"") -> None:
        """What aiohttp does where the end is behind more than a client has taken."""
        if not has_waited.is_set():
            has_waited.set()
            await asyncio.Event().wait()
        await ends(self, data)

    monkeypatch.setattr(web.StreamResponse, "write_eof", waits_for_room)
    email = await _large_email(api)
    changes = [_write("PATCH", f"emails/{email}", status=status) for status in ["classified", "sent"] * 2]
    with pytest.raises(aiohttp.ClientError):
        await api.post("batch", commands=changes)
    assert has_waited.is_set()


async def _is_answered(service: Service) -> bool:
    """Whether the service is done with the batch."""
    async with service.api.session.get("/metrics") as response:
        shown = await response.text()
    return 'squad_http_requests_total{route="/api/v1/batch",status="200"} 1.0' in shown


def _raised() -> list[Problem]:
    return [item for item in gc.get_objects() if isinstance(item, Problem) and item.__traceback__]


async def test_of_those_that_are_wrong_nothing_stays_in_memory(api: Api) -> None:
    """An exception and what holds it are a circle, in which the whole body stays."""
    gc.collect()
    gc.disable()
    try:
        results = await _batch(api, _write("POST", "nowhere"), _write("POST", "messages"), _message("m"))
        assert [result["status"] for result in results] == [404, 422, 201]
        (await api.post("messages", from_agent="ada")).expect(422)
        await eventually(lambda: not _raised())
    finally:
        gc.enable()


async def test_one_that_is_refused_or_wrong_does_not_stop_the_rest(api: Api) -> None:
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


async def test_a_path_means_what_it_means_alone(api: Api) -> None:
    [result] = await _batch(api, _write("PUT", "agents/a%2Fb%20c", role="writer"))
    assert result["body"]["name"] == "a/b c"


@pytest.mark.parametrize("letter", ["x", "ж", "漢", "😀"], ids=["1 byte", "2 bytes", "3 bytes", "4 bytes"])
async def test_whoever_can_be_named_alone_can_be_named_in_a_batch(api: Api, letter: str) -> None:
    name = letter * MAX_NAME_CHARACTERS
    (await api.put(f"agents/{quote(name)}", role="writer")).expect(200)
    [result] = await _batch(api, _write("POST", f"agents/{quote(name)}/heartbeat"))
    assert (result["status"], result["body"]["name"]) == (200, name)


@pytest.mark.parametrize("more", ["?", "?dry_run=true", "#now"])
async def test_a_path_is_a_path_and_no_more(service: Service, more: str) -> None:
    head = await service.head()
    [result] = await _batch(service.api, _write("PUT", f"agents/ada{more}", role="writer"))
    assert (result["status"], result["body"]["code"]) == (404, "not_found")
    assert await service.head() == head
    [escaped] = await _batch(service.api, _write("PUT", "agents/ada%3F%23", role="writer"))
    assert escaped["body"]["name"] == "ada?#"


async def test_a_batch_holds_a_thousand_commands_and_no_more(service: Service) -> None:
    commands = [_message(f"m{number}") for number in range(1_000)]
    results = await _batch(service.api, *commands)
    assert {result["status"] for result in results} == {201}
    positions = [result["body"]["position"] for result in results]
    assert positions == list(range(positions[0], positions[0] + 1_000))
    head = await service.head()
    answer = await service.api.post("batch", commands=[*commands, _message("one more")])
    fault = answer.expect(422, "validation_failed")
    assert fault["errors"][0]["field"] == "commands"
    (await service.api.post("batch", commands=[])).expect(422, "validation_failed")
    assert await service.head() == head


async def test_all_events_of_a_batch_bear_one_correlation_id(api: Api) -> None:
    headers = {"X-Correlation-Id": "bulk"}
    results = await _batch(api, _message("one"), _message("two"), headers=headers)
    for result in results:
        event = (await api.get(f"events/{result['body']['position']}")).expect(200)
        assert event["correlation_id"] == "bulk"


async def test_a_repeated_batch_gets_its_first_answers_again(service: Service) -> None:
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


async def test_another_batch_with_the_same_key_is_refused_whole(service: Service) -> None:
    key = {"Idempotency-Key": "k"}
    await _batch(service.api, _message("one"), headers=key)
    head = await service.head()
    answer = await service.api.post("batch", key, commands=[_message("one"), _message("two")])
    answer.expect(409, "idempotency_mismatch")
    assert await service.head() == head


async def test_a_batch_with_the_key_of_another_request_is_refused_whole(service: Service) -> None:
    key = {"Idempotency-Key": "k"}
    (await service.api.post("messages", key, from_agent="ada", message="one")).expect(201)
    head = await service.head()
    answer = await service.api.post("batch", key, commands=[_message("one")])
    answer.expect(409, "idempotency_mismatch")
    assert await service.head() == head


async def test_another_request_with_the_key_of_a_batch_is_refused(service: Service) -> None:
    key = {"Idempotency-Key": "k"}
    # The first command leaves no trace, and so no answer either.
    await _batch(service.api, _write("POST", "messages/x/ack", agent="ada"), _message("one"), headers=key)
    head = await service.head()
    answer = await service.api.post("messages", key, from_agent="ada", message="one")
    assert "'k'" in answer.expect(409, "idempotency_mismatch")["detail"]
    assert await service.head() == head


async def test_no_key_of_a_client_is_one_that_a_batch_made(service: Service) -> None:
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
async def test_a_command_that_is_no_request_spoils_the_batch(
    service: Service, command: object, field: str
) -> None:
    head = await service.head()
    answer = await service.api.post("batch", commands=[command, _message("fine")])
    fault = answer.expect(422, "validation_failed")
    assert fault["errors"][0]["field"] == field
    assert await service.head() == head


async def test_what_is_no_command_is_told_in_words_of_the_api(service: Service) -> None:
    answer = await service.api.post("batch", commands=["POST /api/v1/tasks"])
    fault = answer.expect(422, "validation_failed")
    assert fault["detail"] == "commands.0: must be an object, with names and values"
    for commands in ([], [_message("one too many")] * 1_001):
        fault = (await service.api.post("batch", commands=commands)).expect(422, "validation_failed")
        assert fault["detail"].startswith("commands: must have ")


async def test_every_write_of_the_table_can_be_batched(api: Api) -> None:
    writes = [route for route in ROUTES if route.write]
    commands: list[dict[str, object]] = [
        {"method": route.method, "path": route.path.replace("{id}", UNKNOWN).replace("{name}", "ada")}
        for route in writes
    ]
    for route, result in zip(writes, await _batch(api, *commands), strict=True):
        assert result["body"].get("code") != "not_found", route


def test_what_changes_something_can_be_batched_or_says_why_not() -> None:
    no_writes = ("/check", "/whatif", "/batch")
    alone = [
        route.path
        for route in ROUTES
        if route.method != "GET" and route.path.startswith("/api/v1") and not route.path.endswith(no_writes)
        if route.write is None
    ]
    assert alone == ["/api/v1/subjects/forget"]


async def test_jobs_are_defined_and_run_as_they_are_alone(api: Api) -> None:
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
    alone = [
        await api.put("jobs/watch", **spec),
        await api.post("jobs/watch/run"),
        await api.post("jobs/nobody/run"),
        await api.post("jobs/watch/run", now=True),
        await api.put("jobs/watch", **spec, name="watch"),
        await api.put(f"jobs/{'n' * 101}", **spec),
    ]
    assert [result["status"] for result in results] == [200, 202, 404, 422, 422, 422]
    assert [result["status"] for result in results] == [answer.status for answer in alone]
    for result, answer in zip(results, alone, strict=True):
        assert result["body"].keys() == answer.body.keys()
        assert result["body"].get("detail") == answer.body.get("detail")
    assert (results[1]["body"]["job"], results[1]["body"]["status"]) == ("watch all", "running")

    async def both_done() -> bool:
        items = (await api.get("runs", status="succeeded")).expect(200)["items"]
        return {item["job"] for item in items} == {"watch all", "watch"}

    await eventually(both_done)


async def test_a_batch_that_is_repeated_runs_no_job_again(api: Api) -> None:
    spec = {"task": "token_monitor", "every": "300d", "overlap": "allow_all"}
    commands = (_write("PUT", "jobs/watch", **spec), _write("POST", "jobs/watch/run"))
    key = {"Idempotency-Key": "once"}
    first = await _batch(api, *commands, headers=key)
    assert await _batch(api, *commands, headers=key) == first
    assert len((await api.get("runs")).expect(200)["items"]) == 1


async def test_who_is_to_be_forgotten_is_told_to_be_sent_alone(service: Service) -> None:
    head = await service.head()
    results = await _batch(service.api, _write("POST", "subjects/forget", subject="a@example.org"))
    [fault] = results[0]["body"]["errors"]
    assert (results[0]["status"], fault["field"]) == (422, "path")
    assert fault["message"].startswith("send POST /api/v1/subjects/forget alone")
    assert await service.head() == head
