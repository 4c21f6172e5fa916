"""Calls to agents: what goes out, what is believed of what comes back, and what is not put up with."""

from __future__ import annotations

import asyncio
import gc
from time import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

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
    stops_short,
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
    return await client.call(agent, url, "/work", MESSAGE_ID, payload)


async def test_the_payload_goes_out_as_json_with_its_id(agents: Agents, client: AgentClient) -> None:
    reply = await call(client, job="poll", attempt=1)
    assert reply.ok
    (got,) = agents.calls
    assert got.payload == {"job": "poll", "attempt": 1}
    assert got.headers["Content-Type"] == "application/json"
    assert got.headers["webhook-id"] == MESSAGE_ID
    assert abs(int(got.headers["webhook-timestamp"]) - time()) < 5
    assert "webhook-signature" not in got.headers


async def test_an_agent_with_a_secret_can_verify_the_signature(agents: Agents, client: AgentClient) -> None:
    await call(client, "signing", note="größer")
    (got,) = agents.calls
    assert is_signed(got, SECRET)
    assert not is_signed(got._replace(body=got.body + b" "), SECRET)


async def test_the_registered_url_goes_before_the_default_one(client: AgentClient) -> None:
    async with running_agents() as elsewhere:
        assert (await call(client, url=f"{elsewhere.url}/base/")).ok
        assert [got.path for got in elsewhere.calls] == ["/base/work"]


@pytest.mark.parametrize(
    ("base", "endpoint", "expected"),
    [
        ("", "/work", "/work"),
        ("/base/", "/work", "/base/work"),
        ("/base?key=secret", "/work", "/base/work?key=secret"),
        ("?key=secret", "/work?deep=1", "/work?deep=1&key=secret"),
        ("/base#here", "/work", "/base/work"),
    ],
    ids=["bare", "with a path", "with a query", "both with a query", "with a fragment"],
)
async def test_the_endpoint_is_a_path_at_the_agents_url_whatever_follows_that(
    agents: Agents, client: AgentClient, base: str, endpoint: str, expected: str
) -> None:
    """Otherwise another path would be called than the job names, and may well answer that all is done."""
    called: list[str] = []

    async def behave(request: web.Request) -> web.StreamResponse:
        called.append(str(request.rel_url))
        return await answers({})(request)

    agents.on("/work", behave)
    agents.on("/base/work", behave)
    await client.call("worker", agents.url + base, endpoint, MESSAGE_ID, {})
    assert called == [expected]


async def test_a_connection_is_used_again_and_given_up_before_a_server_would_do_so(
    agents: Agents, client: AgentClient
) -> None:
    """Or a job whose ticks are as far apart as its agent's patience would fail again and again."""
    connections: list[asyncio.BaseTransport | None] = []

    async def note(request: web.Request) -> web.StreamResponse:
        connections.append(request.transport)
        return await answers({})(request)

    agents.on("/work", note)
    await call(client)
    await call(client)
    first, second = connections
    assert first is second
    assert first
    await eventually(first.is_closing, within_seconds=5.0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(agents: Agents, client: AgentClient, status: int) -> None:
    agents.on("/work", answers({}, status, Location=f"{agents.url}/elsewhere"))
    reply = await call(client)
    assert not reply.ok
    assert f"answered {status}" in (reply.reason or "")
    assert not agents.called("/elsewhere")


async def test_cookies_are_not_kept(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", answers({}, Set_Cookie="id=1; Path=/"))
    await call(client, "one")
    await call(client, "another")
    assert not any("Cookie" in got.headers for got in agents.calls)


async def test_an_answer_is_cut_at_a_mebibyte(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", answers({"padding": "x" * 3 * MEBIBYTE, "tokens_used": 7}))
    reply = await call(client)
    assert reply.ok
    assert isinstance(reply.body, str)
    assert len(reply.body) < MAX_ANSWER_BYTES
    assert reply.tokens_used is None


async def test_an_answer_of_just_a_mebibyte_is_whole(agents: Agents, client: AgentClient) -> None:
    body = b'"' + b"x" * (MAX_ANSWER_BYTES - 2) + b'"'
    agents.on("/work", answers_bytes(body))
    assert (await call(client)).body == body[1:-1].decode()


async def test_an_answer_without_end_is_left_when_time_is_up(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", drips())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await call(client)
    await eventually(lambda: not agents.busy["/work"], describe="the agent is not listened to any more")


async def test_a_slow_agent_is_waited_for(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", after(0.3, answers({"tokens_used": 3})))
    assert (await call(client)).tokens_used == 3


async def test_a_reset_connection_is_an_answer_too(agents: Agents, client: AgentClient) -> None:
    agents.on("/work", hangs_up())
    reply = await call(client)
    assert not reply.ok
    assert "/work failed" in (reply.reason or "")


@pytest.mark.parametrize("behaviour", [hangs_up(), stops_short()], ids=["none", "half of one"])
async def test_of_an_answer_that_broke_off_nothing_stays_in_memory(
    agents: Agents, client: AgentClient, behaviour: Behaviour
) -> None:
    """An answer that holds the exception, which holds the call, is a circle."""
    agents.on("/work", behaviour)
    gc.collect()
    gc.disable()
    try:
        assert not (await call(client)).ok
        frames = [item for item in gc.get_objects() if isinstance(item, FrameType)]
        assert not [frame for frame in frames if frame.f_code is AgentClient.call.__code__]
    finally:
        gc.enable()


async def test_so_is_an_agent_that_is_not_there(client: AgentClient) -> None:
    reply = await call(client, url="http://127.0.0.1:9")
    assert not reply.ok
    assert reply.reason == (
        "the call to http://127.0.0.1:9/work failed: Connect call failed ('127.0.0.1', 9)"
    )


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_anything_but_a_2xx_is_a_failure_that_quotes_the_agent(
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
async def test_tokens_are_believed_where_they_are_reported_as_agreed(
    agents: Agents, client: AgentClient, body: bytes, tokens: int | None
) -> None:
    agents.on("/work", answers_bytes(body))
    reply = await call(client)
    assert reply.ok
    assert reply.tokens_used == tokens
