"""What stands around every answer: who is at home, headers, other pages' origins, sizes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from service.database import StartFailed
from service.http.connection import MAX_HEADER_BYTES, MAX_HEADERS, MAX_LINE_BYTES
from service.http.routes import ROUTES
from tests.api.client import running_service
from tests.support.keys import make_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.api.client import Api, Service

ORIGIN = "https://board.example.org"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_a_squad_without_keys_is_not_served_to_others(database: str, host: str) -> None:
    with pytest.raises(StartFailed) as refused:
        async with running_service(database, host=host):
            pass
    assert "squad keys create" in str(refused.value)
    assert "--insecure" in str(refused.value)


async def test_unless_somebody_says_so(database: str) -> None:
    async with running_service(database, host="0.0.0.0", insecure=True) as service:
        answer = await service.api.get("budget", {"Host": "squad.example.org"})
        answer.expect(200)


async def test_with_a_key_it_is(database: str) -> None:
    key = await make_key(database)
    async with running_service(database, host="0.0.0.0") as service:
        (await service.api.get("budget")).expect(401, "unauthorized")
        (await service.api.with_key(key.text).get("budget")).expect(200)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_at_home_none_is_needed(database: str, host: str) -> None:
    async with running_service(database, host=host) as service:
        (await service.api.get("budget")).expect(200)


async def test_a_name_that_was_led_to_this_machine_gets_no_answer(api: Api) -> None:
    refused = await api.get("budget", {"Host": "evil.example"})
    refused.expect(421, "misdirected")
    seeds = (await api.get("/api/squad", {"Host": "evil.example"})).expect(421)
    assert seeds["details"]["code"] == "misdirected"
    (await api.get("budget", {"Host": "localhost:9"})).expect(200)


async def test_a_page_that_posts_blindly_changes_nothing(service: Service) -> None:
    """Without a body no browser asks before it lets a page post."""
    job = {"agent": "ada", "endpoint": "/x", "every": "1h"}
    await service.api.put("agents/ada", role="writer")
    (await service.api.put("jobs/nightly", **job)).expect(200)
    head = await service.head()
    for path in ("jobs/nightly/run", "jobs/nightly/pause", "agents/ada/heartbeat"):
        async with service.api.session.post(
            f"/api/v1/{path}", headers={"Origin": "https://evil.example"}
        ) as response:
            assert response.status == 403
            assert (await response.json(content_type=None))["code"] == "not_allowed"
    assert await service.head() == head


# Headers -------------------------------------------------------------------------------------------------


def _is_hardened(headers: Mapping[str, str]) -> bool:
    return (
        headers["X-Content-Type-Options"] == "nosniff"
        and headers["Cache-Control"] == "no-store"
        and headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        and "Access-Control-Allow-Origin" not in headers
    )


async def test_every_answer_bears_the_headers_that_keep_browsers_in_check(api: Api) -> None:
    paths = [
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/api/squad"),
        ("GET", "/api/squad?action=orchestrator-status"),
        ("POST", "/api/squad"),
        ("PATCH", "/api/squad"),
        ("GET", "/api/v1/budget"),
        ("GET", "/api/v1/events/1"),
        ("GET", "/api/v1/events/stream"),
        ("GET", "/api/v1/events/stream?after=x"),
        ("POST", "/api/v1/messages"),
        ("GET", "/nowhere"),
        ("DELETE", "/api/v1/budget"),
        ("OPTIONS", "/api/v1/budget"),
    ]
    assert {path.partition("?")[0] for _, path in paths} & {route.path for route in ROUTES}
    for method, path in paths:
        async with api.session.request(method, path, headers={"Origin": ORIGIN}) as response:
            assert _is_hardened(response.headers), (method, path, response.headers)


async def test_what_is_not_http_gets_them_as_well(service: Service) -> None:
    answer = await _raw(service, b"nonsense\r\n\r\n")
    assert b"\r\nX-Content-Type-Options: nosniff\r\n" in answer


# Pages of other origins ----------------------------------------------------------------------------------


@pytest.fixture
async def open_to_a_page(database: str) -> AsyncIterator[Api]:
    async with running_service(database, cors_origins=(ORIGIN,)) as service:
        yield service.api


async def test_a_page_of_an_origin_that_is_named_may_see_answers(open_to_a_page: Api) -> None:
    for path in ("/api/v1/budget", "/api/v1/nowhere", "/api/squad", "/api/v1/events/stream"):
        async with open_to_a_page.session.get(path, headers={"Origin": ORIGIN}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN, path
            assert response.headers["Vary"] == "Origin"
    for origin in (
        "https://evil.example",
        "https://board.example.org.evil.example",
        "null",
        ORIGIN.upper(),
    ):
        async with open_to_a_page.session.get("/api/v1/budget", headers={"Origin": origin}) as response:
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_and_may_ask_what_it_may(open_to_a_page: Api) -> None:
    ask = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with open_to_a_page.session.options("/api/v1/budget", headers=ask) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Access-Control-Allow-Methods"] == "GET, HEAD, PUT"
        assert response.headers["X-Correlation-Id"]
        assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in response.headers
    posted = await open_to_a_page.post("messages", {"Origin": ORIGIN}, from_agent="ada", message="m")
    posted.expect(201)


@pytest.mark.parametrize(
    "changed",
    [{"Origin": "https://evil.example"}, {"Origin": None}, {"Access-Control-Request-Method": None}],
    ids=str,
)
async def test_others_are_told_nothing(open_to_a_page: Api, changed: dict[str, str | None]) -> None:
    ask = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT", **changed}
    sent = {name: value for name, value in ask.items() if value is not None}
    async with open_to_a_page.session.options("/api/v1/budget", headers=sent) as response:
        assert response.status == 405
        assert "Access-Control-Allow-Methods" not in response.headers
        seen = response.headers.get("Access-Control-Allow-Origin")
        assert seen == (ORIGIN if sent.get("Origin") == ORIGIN else None)


# Sizes -------------------------------------------------------------------------------------------------


async def test_a_head_has_so_many_headers_of_such_a_size(service: Service) -> None:
    for name, extra, good in (
        ("many", b"".join(b"X-%d: a\r\n" % number for number in range(MAX_HEADERS - 2)), True),
        ("too many", b"".join(b"X-%d: a\r\n" % number for number in range(MAX_HEADERS + 1)), False),
        ("large", b"X-Large: " + b"a" * (MAX_HEADER_BYTES - 100) + b"\r\n", True),
        ("too large", b"X-Large: " + b"a" * (MAX_HEADER_BYTES + 100) + b"\r\n", False),
    ):
        answer = await _raw(
            service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + extra + b"\r\n"
        )
        assert answer.split()[1] == (b"200" if good else b"400"), (name, answer)
    line = b"GET /healthz?" + b"a" * MAX_LINE_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert (await _raw(service, line)).split()[1] == b"400"


async def test_a_key_that_is_as_long_as_a_header_may_be_is_just_wrong(database: str) -> None:
    await make_key(database)
    async with running_service(database) as service:
        headers = {"Authorization": "Bearer squad_" + "2" * 8_000}
        (await service.api.get("budget", headers)).expect(401, "unauthorized")


async def _raw(service: Service, request: bytes) -> bytes:
    """What is answered to these bytes."""
    address = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
