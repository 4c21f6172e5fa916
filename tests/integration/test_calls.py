"""Calls to agents: what is sent, what is accepted of the answer, and how failures are reported."""

from __future__ import annotations

import asyncio
import gc
from time import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

from service.commands import Usage
from service.scheduling.calls import MAX_ANSWER_BYTES, AgentClient
from tests.support.agents import (
    MEBIBYTE,
    after,
    answers,
    answers_bytes,
    drips,
    hangs_up,
    is_signed,
    running_agents,
    truncates_answer,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

    from service.scheduling.calls import Reply
    from tests.support.agents import Agents, Behaviour

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "019f0000-0000-7000-8000-000000000001"


@pytest.fixture
async def client(agents: Agents) -> AsyncIterator[AgentClient]:
    async with AgentClient(agents.url, {"signing": SECRET}) as opened:
        yield opened


async def call(client: AgentClient, agent: str = "worker", url: str | None = None, **payload: Any) -> Reply:
    return await client.call(agent, url, "/work", MESSAGE_ID, payload, quote=True)


async def test_call_to_agent_without_secret_is_unsigned_json_with_its_message_id(
    agents: Agents, client: AgentClient
) -> None:
    reply = await call(client, job="poll", attempt=1)
    assert reply.ok
    (received,) = agents.calls
    assert received.payload == {"job": "poll", "attempt": 1}
    assert received.headers["Content-Type"] == "application/json"
    assert received.headers["webhook-id"] == MESSAGE_ID
    assert abs(int(received.headers["webhook-timestamp"]) - time()) < 5
    assert "webhook-signature" not in received.headers


async def test_agent_with_a_secret_can_verify_the_signature(agents: Agents, client: AgentClient) -> None:
    await call(client, "signing", note="größer")
    (received,) = agents.calls
    assert is_signed(received, SECRET)
    assert not is_signed(received._replace(body=received.body + b" "), SECRET)


async def test_registered_url_takes_precedence_over_the_default_url(client: AgentClient) -> None:
    async with running_agents() as elsewhere:
        assert (await call(client, url=f"{elsewhere.url}/base/")).ok
        assert [received.path for received in elsewhere.calls] == ["/base/work"]


@pytest.mark.parametrize(
    ("base", "endpoint", "expected"),
    [
        ("", "/work", "/work"),
        ("/base/", "/work", "/base/work"),
        ("/base?key=secret", "/work", "/base/work?key=secret"),
        ("?key=secret", "/work?deep=1", "/work?deep=1&key=secret"),
        ("/base#here", "/work", "/base/work"),
    ],
    ids=["no path", "path", "path and query", "two queries", "path and fragment"],
)
async def test_endpoint_is_appended_to_the_path_of_the_agents_url(
    agents: Agents, client: AgentClient, base: str, endpoint: str, expected: str
) -> None:
    """Otherwise another path than the job's would be called, and might well answer that all is done."""
    called: list[str] = []

    async def behave(request: web.Request) -> web.StreamResponse:
        called.append(str(request.rel_url))
        return await answers({})(request)

    agents.on("/work", behave)
    agents.on("/base/work", behave)
    await client.call("worker", agents.url + base, endpoint, MESSAGE_ID, {}, quote=True)
    assert called == [expected]


async def test_connection_is_reused_and_closed_before_a_server_would_close_it(
    agents: Agents, client: AgentClient
) -> None:
    """Otherwise a job that ticks as often as its agent closes idle connections would keep failing."""
    connections: list[asyncio.BaseTransport | None] = []

    async def record(request: web.Request) -> web.StreamResponse:
        connections.append(request.transport)
        return await answers({})(request)

    agents.on("/work", record)
    await call(client)
    await call(client)
    first, second = connections
    assert first is second
    assert first
    await eventually(first.is_closing, within_seconds=5.0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(agents: Agents, client: AgentClient, status: int) -> None:
    agents.on("/work", answers({}, status, Location=f"{agents.url}/elsewhere"))
    reply = await call(client)
    assert not reply.ok
    assert f"answered {status}" in (reply.reason or "")
    assert not agents.called("/elsewhere")


async def test_cookies_are_not_kept(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", answers({}, Set_Cookie="id=1; Path=/"))
    await call(client, "one")
    await call(client, "another")
    assert not any("Cookie" in received.headers for received in agents.calls)


async def test_answer_is_truncated_at_one_mebibyte(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", answers({"padding": "x" * 3 * MEBIBYTE, "tokens_used": 7}))
    reply = await call(client)
    assert reply.ok
    assert isinstance(reply.body, str)
    assert len(reply.body) < MAX_ANSWER_BYTES
    assert reply.usage is None


async def test_answer_of_exactly_one_mebibyte_is_read_completely(
    agents: Agents, client: AgentClient
) -> None:
    body = b'"' + b"x" * (MAX_ANSWER_BYTES - 2) + b'"'
    agents.on("/work", answers_bytes(body))
    assert (await call(client)).body == body[1:-1].decode()


async def test_endless_answer_is_abandoned_on_timeout(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", drips())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await call(client)
    await eventually(lambda: not agents.in_flight["/work"], describe="the call to the agent is closed")


async def test_call_waits_for_a_slow_agent(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", after(0.3, answers({"tokens_used": 3})))
    assert (await call(client)).usage == Usage(3)


async def test_reset_connection_is_returned_as_a_failed_reply(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", hangs_up())
    reply = await call(client)
    assert not reply.ok
    assert "/work failed" in (reply.reason or "")


@pytest.mark.parametrize("behaviour", [hangs_up(), truncates_answer()], ids=["no answer", "half an answer"])
async def test_interrupted_answer_leaves_nothing_in_memory(
    agents: Agents, client: AgentClient, behaviour: Behaviour
) -> None:
    """A reply that references the exception, whose traceback references the call, would be a cycle."""
    agents.on("/work", behaviour)
    gc.collect()
    gc.disable()
    try:
        assert not (await call(client)).ok
        frames = [item for item in gc.get_objects() if isinstance(item, FrameType)]
        assert not [frame for frame in frames if frame.f_code is AgentClient.call.__code__]
    finally:
        gc.enable()


async def test_unreachable_agent_is_returned_as_a_failed_reply(client: AgentClient) -> None:
    reply = await call(client, url="http://127.0.0.1:9")
    assert not reply.ok
    assert reply.reason == (
        "the call to http://127.0.0.1:9/work failed: Connect call failed ('127.0.0.1', 9)"
    )


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_status_other_than_2xx_is_a_failure_that_quotes_the_answer(
    agents: Agents, client: AgentClient, status: int
) -> None:
    agents.on("/work", answers({"error": "no mailbox"}, status))
    reply = await call(client)
    assert not reply.ok
    assert reply.reason == f'the agent answered {status}: {{"error":"no mailbox"}}'


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"tokens_used": 120}', 120),
        (b'{"usage": {"input_tokens": 100, "output_tokens": 20}}', 120),
        (b'{"usage": {"output_tokens": 20}}', 20),
        (b'{"tokens_used": 0, "usage": {"input_tokens": 9}}', 0),
        (b'{"tokens_used": -1}', None),
        (b'{"tokens_used": true}', None),
        (b'{"tokens_used": "120"}', None),
        (b'{"tokens_used": 123456789012345678901234567890}', None),
        (b'{"usage": [1, 2]}', None),
        (b"[120]", None),
        (b"tokens_used: 120", None),
        (b"", None),
        (b'{"text": "\\u0000"}', None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
async def test_tokens_are_read_only_from_a_well_formed_report(
    agents: Agents, client: AgentClient, body: bytes, tokens: int | None
) -> None:
    agents.on("/work", answers_bytes(body))
    reply = await call(client)
    assert reply.ok
    assert (reply.usage and reply.usage.tokens_used) == tokens
