"""Requests that are rejected before they become commands, and the answers to them."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zlib
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import pytest

from service.http.context import MAX_BODY_BYTES
from service.http.problems import OTHERS, REFUSALS
from service.refusals import RefusalCode
from tests.api.client import Answer, Service, assert_as_documented
from tests.api.inputs import targets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.api.client import Api

MESSAGE = b'{"from_agent":"ada","message":"hello"}'
JSON = {"Content-Type": "application/json"}


# All tests share one service, which has to withstand all of this input.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def service(shared_service: Service) -> Service:
    return shared_service


async def _post(api: Api, body: bytes, headers: Mapping[str, str]) -> Answer:
    async with api.session.post("/api/v1/messages", data=io.BytesIO(body), headers=headers) as response:
        answer = Answer(response.status, await response.json(content_type=None), response.headers)
    assert_as_documented("POST", "/api/v1/messages", answer)
    return answer


async def _raw(service: Service, request: bytes) -> Answer:
    """Send bytes that no client library would send, and read the answer to its end."""
    address = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), json.loads(body), headers)


async def test_each_refusal_has_its_own_problem() -> None:
    assert REFUSALS.keys() == set(get_args(RefusalCode))
    assert not REFUSALS.keys() & OTHERS.keys()


async def test_unknown_path_is_not_found(api: Api) -> None:
    for path in ("/", "/api", "/api/v2/tasks", "/api/v1/tasks/", "/api//v1/tasks", "/healthz/x"):
        (await api.get(path)).expect(404, "not_found")


async def test_unsupported_method_is_answered_with_the_allowed_ones(api: Api) -> None:
    for method, path, allowed in (
        ("DELETE", "/api/v1/tasks", "GET, HEAD, POST"),
        ("PUT", "/api/squad", "GET, HEAD, PATCH, POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/api/v1/budget", "GET, HEAD, PUT"),
        ("HEAD", "/api/v1/whatif", "POST"),
        ("HEAD", "/api/v1/events/stream", "GET"),
    ):
        async with api.session.request(method, path) as response:
            assert (response.status, response.headers["Allow"]) == (405, allowed)
            assert response.content_type == "application/problem+json"


async def test_body_may_have_one_mebibyte_and_not_a_byte_more(service: Service) -> None:
    full = MESSAGE.ljust(MAX_BODY_BYTES)
    (await _post(service.api, full, JSON)).expect(201)
    head = await service.head()
    (await _post(service.api, full + b" ", JSON)).expect(413, "payload_too_large")
    assert await service.head() == head


def _raw_deflate(text: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(text) + compressor.flush()


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        (" GZip ", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", _raw_deflate),
        ("identity", bytes),
    ],
)
async def test_compressed_body_is_accepted_up_to_one_mebibyte_decompressed(
    api: Api, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    (await _post(api, compress(MESSAGE), {**JSON, "Content-Encoding": coding})).expect(201)
    full = MESSAGE.ljust(MAX_BODY_BYTES)
    (await _post(api, compress(full), {**JSON, "Content-Encoding": coding})).expect(201)
    (await _post(api, compress(full + b" "), {**JSON, "Content-Encoding": coding})).expect(413)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress", "nonsense"])
async def test_unsupported_content_encoding_is_rejected(service: Service, coding: str) -> None:
    head = await service.head()
    answer = await _post(service.api, MESSAGE, {**JSON, "Content-Encoding": coding})
    assert "gzip, deflate" in answer.expect(415, "unsupported_media_type")["detail"]
    assert await service.head() == head


@pytest.mark.parametrize(
    "body",
    [gzip.compress(MESSAGE)[:-1], gzip.compress(MESSAGE) + b"x", gzip.compress(MESSAGE) * 2, b"\x1f"],
    ids=["truncated", "trailing byte", "two members", "first byte only"],
)
async def test_truncated_or_trailing_gzip_data_is_rejected(service: Service, body: bytes) -> None:
    head = await service.head()
    (await _post(service.api, body, {**JSON, "Content-Encoding": "gzip"})).expect(400, "bad_request")
    assert await service.head() == head


async def test_body_of_request_rejected_by_its_head_is_not_decompressed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte can decompress to a gigabyte, and all other requests would wait meanwhile."""
    fed: list[int] = []
    feed_data = aiohttp.StreamReader.feed_data

    def record_and_feed(self: aiohttp.StreamReader, data: bytes, *more: Any) -> Any:
        fed.append(len(data))
        return feed_data(self, data, *more)

    monkeypatch.setattr(aiohttp.StreamReader, "feed_data", record_and_feed)
    compressed = gzip.compress(bytes(50_000_000))
    address = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"POST /api/v1/messages HTTP/1.1\r\nHost: elsewhere.example\r\nContent-Encoding: gzip\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(compressed), compressed))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answers = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answers.startswith(b"HTTP/1.1 421 ")
    assert answers.endswith(b'{"status":"alive"}')
    assert sum(fed) == len(compressed)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        ";;;",
    ],
)
async def test_content_type_other_than_json_is_rejected(service: Service, content_type: str) -> None:
    head = await service.head()
    answer = await _post(service.api, MESSAGE, {"Content-Type": content_type})
    answer.expect(415, "unsupported_media_type")
    assert await service.head() == head


@pytest.mark.parametrize(
    "content_type", ["application/json", "APPLICATION/JSON", "application/json; charset=UTF-8"]
)
async def test_content_type_of_json_may_be_written_in_several_ways(api: Api, content_type: str) -> None:
    (await _post(api, MESSAGE, {"Content-Type": content_type})).expect(201)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_body_that_is_not_encoded_as_declared_is_rejected(api: Api, encoding: str) -> None:
    answer = await _post(api, MESSAGE, {**JSON, "Content-Encoding": encoding})
    answer.expect(400, "bad_request")


@pytest.mark.parametrize(
    "target",
    [
        b"/api/v1/agents/%FF",
        b"/api/v1/agents/%ED%A0%80/inbox",
        b"/api/v1/messages?from_agent=%FF",
        b"/api/v1/messages?%FF=1",
        b"/api/v1/tasks/%C3",
        b"/api/squad?agentName=%FF",
        b"/healthz?%FF",
        b"/metrics?%FF",
        b"/api/v1/agents/\xff",
        b"/nowhere/\xc3\xa4",
        b"/api/v1/agents/" + b"a" * 20_000,
    ],
)
async def test_url_that_is_not_percent_encoded_utf8_or_too_long_is_rejected(
    service: Service, target: bytes
) -> None:
    answer = await _raw(
        service, b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target
    )
    assert answer.status == 400
    assert "bad_request" in str(answer.body)
    assert_as_documented("GET", target.decode("latin-1").partition("?")[0], answer)


@pytest.mark.parametrize(
    ("method", "path"),
    [(target.method, target.path) for target in targets() if not target.is_facade],
    ids=lambda part: str(part).removeprefix("/api/v1/"),
)
async def test_unused_query_parameter_is_rejected(service: Service, method: str, path: str) -> None:
    head = await service.head()
    for query in ({"dry_run": "true"}, {"min_position": "1"}):
        problem = (await service.api.ask(method, path, {}, query=query)).expect(422, "validation_failed")
        assert [error["field"] for error in problem["errors"]] == list(query)
    assert await service.head() == head


async def test_empty_query_is_accepted_and_facade_and_probes_ignore_theirs(api: Api) -> None:
    (await api.ask("POST", "/api/v1/tasks?", {"title": "t"})).expect(201)
    (await api.ask("POST", "/api/squad?from=seed", {"title": "t"})).expect(200)
    (await api.ask("GET", "/healthz?at=noon")).expect(200)


@pytest.mark.parametrize("target", ["agents/%00", "agents/%00/inbox", "agents/%0A", f"agents/{'a' * 101}"])
async def test_invalid_name_in_path_is_rejected(api: Api, target: str) -> None:
    async with api.session.get(f"/api/v1/{target}") as response:
        assert response.status == 422
        assert (await response.json(content_type=None))["errors"][0]["field"] == "name"


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"SMASH /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/v1/tasks HTTP/1.1\r\n\r\n",
        b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: a\r\n" * 5_000 + b"\r\n",
        b"GET /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nX Y: a\r\n\r\n",
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        b"Content-Length: 3\r\n\r\n{}",
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
    ids=str,
)
async def test_malformed_http_is_answered_with_problem_details(service: Service, request_: bytes) -> None:
    answer = await _raw(service, request_)
    answer.expect(400, "bad_request")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert str(UUID(answer.headers["X-Correlation-Id"])) == answer.headers["X-Correlation-Id"]
    (await service.api.get("/healthz")).expect(200)


async def test_client_that_disconnects_during_its_body_leaves_no_trace(service: Service) -> None:
    head = await service.head()
    address = urlsplit(service.url)
    for _ in range(5):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(
            b"POST /api/v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n" + MESSAGE
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    (await service.api.get("/healthz")).expect(200)
    assert await service.head() == head
