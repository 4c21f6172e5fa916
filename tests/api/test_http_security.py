"""The protections of the HTTP layer: access from other machines, security headers, CORS, header limits."""

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
async def test_service_without_keys_refuses_to_listen_on_all_addresses(database: str, host: str) -> None:
    with pytest.raises(StartFailed) as refused:
        async with running_service(database, host=host):
            pass
    assert "squad keys create" in str(refused.value)
    assert "--insecure" in str(refused.value)


async def test_insecure_service_without_keys_listens_on_all_addresses(database: str) -> None:
    async with running_service(database, host="0.0.0.0", insecure=True) as service:
        answer = await service.api.get("budget", {"Host": "squad.example.org"})
        answer.expect(200)


async def test_service_with_keys_listens_on_all_addresses_and_requires_a_key(database: str) -> None:
    key = await make_key(database)
    async with running_service(database, host="0.0.0.0") as service:
        (await service.api.get("budget")).expect(401, "unauthorized")
        (await service.api.with_key(key.text).get("budget")).expect(200)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_no_key_is_needed_on_loopback(database: str, host: str) -> None:
    async with running_service(database, host=host) as service:
        (await service.api.get("budget")).expect(200)


async def test_unknown_host_header_is_rejected(api: Api) -> None:
    refused = await api.get("budget", {"Host": "evil.example"})
    refused.expect(421, "misdirected")
    seeds = (await api.get("/api/squad", {"Host": "evil.example"})).expect(421)
    assert seeds["details"]["code"] == "misdirected"
    (await api.get("budget", {"Host": "localhost:9"})).expect(200)


async def test_post_from_page_of_other_origin_is_rejected(service: Service) -> None:
    """Browsers let any page send a POST without a body, and send no preflight request first."""
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


async def test_every_answer_has_security_headers(api: Api) -> None:
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


async def test_answer_to_malformed_request_has_security_headers(service: Service) -> None:
    answer = await _raw(service, b"nonsense\r\n\r\n")
    assert b"\r\nX-Content-Type-Options: nosniff\r\n" in answer


# CORS ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def cors_api(database: str) -> AsyncIterator[Api]:
    async with running_service(database, cors_origins=(ORIGIN,)) as service:
        yield service.api


async def test_only_pages_of_allowed_origin_may_read_answers(cors_api: Api) -> None:
    for path in ("/api/v1/budget", "/api/v1/nowhere", "/api/squad", "/api/v1/events/stream"):
        async with cors_api.session.get(path, headers={"Origin": ORIGIN}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN, path
            assert response.headers["Vary"] == "Origin"
    for origin in (
        "https://evil.example",
        "https://board.example.org.evil.example",
        "null",
        ORIGIN.upper(),
    ):
        async with cors_api.session.get("/api/v1/budget", headers={"Origin": origin}) as response:
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_preflight_from_allowed_origin_is_answered(cors_api: Api) -> None:
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with cors_api.session.options("/api/v1/budget", headers=preflight) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Access-Control-Allow-Methods"] == "GET, HEAD, PUT"
        assert response.headers["X-Correlation-Id"]
        assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Credentials" not in response.headers
    posted = await cors_api.post("messages", {"Origin": ORIGIN}, from_agent="ada", message="m")
    posted.expect(201)


@pytest.mark.parametrize(
    "changed",
    [{"Origin": "https://evil.example"}, {"Origin": None}, {"Access-Control-Request-Method": None}],
    ids=str,
)
async def test_preflight_is_rejected_from_other_origin_or_when_incomplete(
    cors_api: Api, changed: dict[str, str | None]
) -> None:
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT", **changed}
    sent = {name: value for name, value in preflight.items() if value is not None}
    async with cors_api.session.options("/api/v1/budget", headers=sent) as response:
        assert response.status == 405
        assert "Access-Control-Allow-Methods" not in response.headers
        seen = response.headers.get("Access-Control-Allow-Origin")
        assert seen == (ORIGIN if sent.get("Origin") == ORIGIN else None)


# Header limits -------------------------------------------------------------------------------------------


async def test_number_and_size_of_headers_are_limited(service: Service) -> None:
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


async def test_very_long_key_is_just_unauthorized(database: str) -> None:
    await make_key(database)
    async with running_service(database) as service:
        headers = {"Authorization": "Bearer squad_" + "2" * 8_000}
        (await service.api.get("budget", headers)).expect(401, "unauthorized")


async def _raw(service: Service, request: bytes) -> bytes:
    """Send these bytes; return everything that is answered."""
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
