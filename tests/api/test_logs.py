"""The service's own log: enough to trace a request, and nothing of its content."""

from __future__ import annotations

import json
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from eventstore.errors import LogNotUnderstood, StoreBusy
from eventstore.redaction import describe, describe_with_traceback
from tests.support.agents import answers, running_agents
from tests.support.components import connected, terminate_backends
from tests.support.keys import make_key
from tests.support.leaky_squad import FAIL_IN_BACKGROUND, FAIL_IN_REQUEST, PROGRAM
from tests.support.process import squad_up
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.process import ServiceProcess

MARK = "Zaphod0Beeblebrox"
"""Part of everything that is sent."""

PASSWORD = "dsn0password"
SIGNING = "c2lnbmluZ19zZWNyZXRfb2ZfYWRh"
WRONG_KEY = "squad_7f3k9q2m4x_wrong0wrong0wrong0"


class Answer(NamedTuple):
    """An answer of the service, with the id of its request."""

    status: int
    body: dict[str, Any]
    correlation_id: str


class Client:
    """A client with a key; its answers include the ids of their requests."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}

    async def ask(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        merged = {"Content-Type": "application/json", **self._headers, **(headers or {})}
        async with self._session.request(
            method, f"{self._url}{path}", data=data if body is not None else None, headers=merged
        ) as response:
            text = await response.read()
            shown = json.loads(text) if "json" in response.headers["Content-Type"] else {}
            return Answer(response.status, shown, response.headers["X-Correlation-Id"])


async def _use_api(client: Client) -> None:
    """Send requests of every kind, valid and invalid."""
    ask, v1 = client.ask, "/api/v1"
    await ask("PUT", f"{v1}/agents/ada", {"role": MARK, "url": "http://localhost:1"})
    await ask("POST", f"{v1}/messages", {"from_agent": "ada", "message": MARK, "data": {"x": MARK}})
    await ask("POST", f"{v1}/operations", {"agent": "ada", "action": MARK, "resources": {MARK: MARK}})
    await ask("POST", f"{v1}/operations", {"agent": "bob", "action": MARK, "resources": {MARK: MARK}})
    await ask("POST", f"{v1}/tasks", {"title": MARK, "description": MARK})
    email = {"gmail_message_id": MARK, "from_email": f"{MARK}@example.org", "subject": MARK}
    for _ in range(2):
        await ask("POST", f"{v1}/emails", {**email, "payload": {"text": MARK}})
    await ask("POST", f"{v1}/subjects/forget", {"subject": f"{MARK}@example.org"})
    await ask("POST", "/api/squad", {"action": "orchestrator-message", "fromAgent": "a", "message": MARK})
    await ask("POST", f"{v1}/budget/reservations", {"agent": "ada", "tokens": 10**9})
    command = {"method": "POST", "path": f"/api/v1/{MARK}", "body": {"message": MARK}}
    await ask("POST", f"{v1}/batch", {"commands": [command]})
    # Invalid requests.
    for body in (b'{"message": "' + MARK.encode(), json.dumps([MARK]).encode(), b"\xff" + MARK.encode()):
        await ask("POST", f"{v1}/messages", body)
    await ask("POST", f"{v1}/messages", {"from_agent": "ada", MARK: MARK, "message": {"x": MARK}})
    await ask("POST", f"{v1}/messages", {"from_agent": "ada", "message": f"{MARK}\0"})
    await ask("POST", f"{v1}/messages", MARK.encode(), headers={"Content-Type": f"text/{MARK}"})
    await ask("GET", f"{v1}/messages?limit={MARK}&{MARK}=1")
    await ask("GET", f"/{MARK}")
    await ask("GET", f"{v1}/tasks/{MARK}%ff")
    await ask("POST", f"{v1}/messages", {"from_agent": "a"}, headers={"Idempotency-Key": f"{MARK} {MARK}"})
    await ask("GET", f"{v1}/events/stream", headers={"Last-Event-ID": MARK})
    for _ in range(25):
        await ask("GET", f"{v1}/messages", headers={"Authorization": f"Bearer {WRONG_KEY}"})


def _send_malformed_http(service: ServiceProcess, key: str) -> None:
    address = urlsplit(service.url)
    for head in (
        f"GET /{MARK} HTTP/9.9\r\nAuthorization: Bearer {key}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthoriz\x00ation: Bearer {key}{MARK}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\x01{MARK}\r\n\r\n",
        f"{MARK}\r\n\r\n",
        f"POST /api/v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{MARK}\r\n",
    ):
        with socket.create_connection((address.hostname, address.port)) as line:
            line.sendall(head.encode("latin-1"))
            line.settimeout(5)
            line.recv(4_096)


async def test_log_contains_no_secrets_and_nothing_that_was_sent(database: str) -> None:
    operator = await make_key(database)
    async with running_agents() as agents, connected(database) as elsewhere:
        agents.on("/talk", answers({"summary": MARK, "error": MARK}, status=500))
        settings: dict[str, Any] = {
            "SQUAD_LOG_LEVEL": "debug",
            "SQUAD_LOG_FORMAT": "json",
            "SQUAD_ENCRYPT_PAYLOADS": "true",
            "SQUAD_AGENTS": json.dumps(
                {"talker": {"role": "r", "url": agents.url, "secret": f"whsec_{SIGNING}"}}
            ),
        }
        dsn = make_conninfo(database, password=PASSWORD)
        async with (
            squad_up(dsn=dsn, program=PROGRAM, **settings) as service,
            aiohttp.ClientSession() as session,
        ):
            client = Client(session, service.url, operator.text)
            await eventually(service.is_ready)
            await _use_api(client)
            _send_malformed_http(service, operator.text)
            spec = {"agent": "talker", "endpoint": "/talk", "every": "300d", "retries": 0}
            await client.ask("PUT", "/api/v1/jobs/talk", spec)
            assert (await client.ask("POST", "/api/v1/jobs/talk/run")).status == 202
            await eventually(lambda: agents.called("/talk"))

            # Bugs, whose exceptions repeat their input.
            failed = await _send(client, f"{FAIL_IN_REQUEST} {MARK}")
            assert (failed.status, failed.body["code"]) == (500, "internal_error")
            refused = await client.ask("POST", "/api/v1/tasks", {"title": f"{FAIL_IN_REQUEST} {MARK}"})
            assert (refused.status, refused.body["code"]) == (500, "internal_error")
            # Errors of the database, which repeat whole rows.
            await elsewhere.execute("ALTER TABLE events ADD CHECK (data::text NOT LIKE '%unwanted%')")
            unwanted = await client.ask("POST", "/api/v1/tasks", {"title": f"unwanted {MARK}"})
            assert unwanted.status == 500
            await elsewhere.execute("ALTER TABLE squad_tasks ADD CHECK (title NOT LIKE '%poison%')")
            poison = await client.ask("POST", "/api/v1/tasks", {"title": f"poison {MARK}"})
            assert poison.status == 201
            assert (
                await client.ask("POST", "/api/v1/tasks", {"title": f"{FAIL_IN_BACKGROUND} {MARK}"})
            ).status == 201
            await client.ask("POST", "/api/v1/tasks", {"title": f"after that {MARK}"})
            await eventually(partial(_is_logged, service, "projection tasks stopped at position"))
            await eventually(partial(_is_logged, service, "Task exception was never retrieved"))
            await eventually(partial(_is_logged, service, "an observer of the log failed"))
            for name in ("squad writer", "squad projector", "squad listener", "squad reader"):
                await terminate_backends(elsewhere, name)
            await eventually(partial(_is_logged, service, "listener lost its connection"))
            await eventually(lambda: _is_accepted(client))
            lines = service.log_lines()

    entries = [json.loads(line) for line in lines]
    assert all({"event", "level", "logger", "timestamp"} <= entry.keys() for entry in entries)
    for secret in (MARK, PASSWORD, SIGNING, WRONG_KEY, operator.text, operator.text.rpartition("_")[2]):
        found = [line for line in lines if secret in line]
        assert not found, f"{secret} is in {found[0]}"

    # What remains says which request it was, what went wrong, and where.
    for answer, kind in ((failed, "ValueError"), (refused, "TypeError")):
        logged = [entry for entry in entries if entry.get("correlation_id") == answer.correlation_id]
        [exception] = [entry["exception"] for entry in logged if "exception" in entry]
        assert exception.endswith(kind)
        assert "leaky_squad.py" in exception
    logged = [entry for entry in entries if entry.get("correlation_id") == unwanted.correlation_id]
    assert any("CreateTask failed: StoreRefused" in entry["event"] for entry in logged)


async def _send(client: Client, text: str) -> Answer:
    return await client.ask("POST", "/api/v1/messages", {"from_agent": "ada", "message": text})


async def _is_accepted(client: Client) -> bool:
    return (await client.ask("POST", "/api/v1/budget/usage", {"agent": "ada", "tokens": 1})).status == 201


def _is_logged(service: ServiceProcess, text: str) -> bool:
    return any(text in line for line in service.log_lines())


@pytest.mark.parametrize("given", [True, False])
async def test_answer_events_and_log_lines_have_the_same_correlation_id(database: str, given: bool) -> None:
    operator = await make_key(database)
    headers = {"X-Correlation-Id": "order-66"} if given else {}
    async with (
        squad_up(dsn=database, SQUAD_LOG_LEVEL="debug", SQUAD_LOG_FORMAT="json") as service,
        aiohttp.ClientSession() as session,
    ):
        client = Client(session, service.url, operator.text)
        body = {"from_agent": "ada", "message": "m"}
        done = await client.ask("POST", "/api/v1/messages", body, headers=headers)
        [event] = (await client.ask("GET", "/api/v1/events?type=message_sent")).body["items"]
        others = [
            await client.ask("GET", "/api/v1/budget", headers=headers),
            await client.ask("POST", "/api/v1/messages", {"wrong": 1}, headers=headers),
            await client.ask("GET", "/no/such/path", headers=headers),
            await client.ask("DELETE", "/api/v1/messages", headers=headers),
            await client.ask("GET", "/api/v1/budget", headers={**headers, "Authorization": "Bearer x"}),
        ]
        entries = [json.loads(line) for line in service.log_lines()]
    assert done.status == 201
    assert event["correlation_id"] == done.correlation_id
    if given:
        assert {answer.correlation_id for answer in (done, *others)} == {"order-66"}
    else:
        assert len({answer.correlation_id for answer in (done, *others)}) == 6
    for answer in (done, *others):
        [*logged] = [entry for entry in entries if entry.get("correlation_id") == answer.correlation_id]
        assert any(str(answer.status) in entry["event"] for entry in logged)
    assert any("POST /api/v1/messages: 201 in" in entry["event"] for entry in entries)


async def test_console_format_is_readable_text(database: str) -> None:
    async with squad_up(dsn=database, SQUAD_LOG_LEVEL="debug", SQUAD_LOG_FORMAT="console") as service:
        async with aiohttp.request(
            "GET", f"{service.url}/api/v1/budget", headers={"X-Correlation-Id": "order-66"}
        ) as response:
            assert response.status == 200
        [line] = [line for line in service.log_lines() if "/api/v1/budget" in line]
    assert "GET /api/v1/budget: 200 in" in line
    assert "correlation_id=order-66" in line
    assert "debug" in line


def test_exceptions_are_described_without_their_data() -> None:
    def failing() -> None:
        try:
            raise psycopg.errors.UniqueViolation(MARK)
        except psycopg.Error as error:
            raise LogNotUnderstood(MARK, 7) from error

    with pytest.raises(LogNotUnderstood) as raised:
        failing()
    text = describe_with_traceback(raised.value)
    assert describe(raised.value) == "LogNotUnderstood at position 7"
    assert MARK not in text
    assert "UniqueViolation (23505)" in text
    assert text.endswith("LogNotUnderstood at position 7")
    assert "in failing" in text
    assert describe(StoreBusy("try later")).endswith("try later")
    assert describe(ConnectionRefusedError(111, "refused")) == "ConnectionRefusedError: [Errno 111] refused"
    assert describe(ValueError(MARK)) == "ValueError"
