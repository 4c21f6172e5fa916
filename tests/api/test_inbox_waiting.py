"""Requests that wait for a message to arrive in an inbox."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from eventstore.listener import wait_for_hint
from service.arrivals import Arrivals
from service.http.v1 import messages
from tests.api.client import running_service
from tests.support.keys import make_key, revoke_key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.api.client import Answer, Api, Service

LONG = 30
"""Seconds to wait for what a test makes happen earlier."""

Waits = asyncio.Queue[None]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Gets an entry whenever a request that has found an empty inbox begins to wait."""
    begun: Waits = asyncio.Queue()

    def note_and_wait(waiter: asyncio.Event, seconds: float) -> Awaitable[None]:
        begun.put_nowait(None)
        return wait_for_hint(waiter, seconds)

    monkeypatch.setattr(messages, "wait_for_hint", note_and_wait)
    return begun


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> list[Arrivals]:
    """The `Arrivals` of all services that start from now on."""
    made: list[Arrivals] = []
    init = Arrivals.__init__

    def init_and_keep(self: Arrivals) -> None:
        init(self)
        made.append(self)

    monkeypatch.setattr(Arrivals, "__init__", init_and_keep)
    return made


async def _send(api: Api, text: str, to_agent: str | None) -> dict[str, Any]:
    return (await api.post("messages", from_agent="ada", message=text, to_agent=to_agent)).expect(201)


def _wait(api: Api, agent: str, seconds: float = LONG, **query: object) -> asyncio.Task[Answer]:
    return asyncio.create_task(api.get(f"agents/{agent}/inbox", wait_seconds=seconds, **query))


def _texts(answer: Answer) -> list[str]:
    return [item["message"] for item in answer.expect(200)["items"]]


def _record_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The agents whose inboxes are read from now on, one for each time."""
    agents: list[str] = []
    read = messages._read_inbox

    def record_and_read(services: Any, agent: str, *arguments: Any) -> Awaitable[dict[str, Any]]:
        agents.append(agent)
        return read(services, agent, *arguments)

    monkeypatch.setattr(messages, "_read_inbox", record_and_read)
    return agents


async def test_message_that_is_there_is_answered_without_waiting(api: Api, waits: Waits) -> None:
    await _send(api, "hello", "bob")
    assert _texts(await _wait(api, "bob")) == ["hello"]
    assert waits.empty()


@pytest.mark.parametrize("to_agent", ["bob", None], ids=["to the agent", "to all"])
async def test_message_is_answered_when_it_arrives(api: Api, waits: Waits, to_agent: str | None) -> None:
    waiting = _wait(api, "bob")
    await waits.get()
    sent = await _send(api, "hello", to_agent)
    answer = await waiting
    assert _texts(answer) == ["hello"]
    assert answer.body["items"][0]["id"] == sent["id"]
    assert answer.body["next"] is None


async def test_message_sent_through_another_process_is_answered(service: Service, waits: Waits) -> None:
    async with running_service(service.dsn) as other:
        waiting = _wait(other.api, "bob")
        await waits.get()
        await _send(service.api, "hello", "bob")
        assert _texts(await waiting) == ["hello"]


async def test_inbox_is_not_read_for_messages_to_other_agents(
    api: Api, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_for = _record_reads(monkeypatch)
    waiting = _wait(api, "bob")
    await waits.get()
    for number in range(5):
        await _send(api, f"m{number}", "carol")
    await _send(api, "hello", "bob")
    assert _texts(await waiting) == ["hello"]
    assert read_for == ["bob", "bob"]


async def test_request_that_nothing_arrives_for_is_answered_with_an_empty_page(
    api: Api, waits: Waits
) -> None:
    started = asyncio.get_running_loop().time()
    answer = (await api.get("agents/bob/inbox", wait_seconds=0.2)).expect(200)
    assert answer == {"items": [], "next": None}
    assert asyncio.get_running_loop().time() - started >= 0.2
    assert not waits.empty()


async def test_message_before_the_page_does_not_end_the_wait(api: Api, waits: Waits) -> None:
    """An agent that leaves messages in its inbox can wait for the ones after them."""
    left = await _send(api, "left", "bob")
    waiting = _wait(api, "bob", after=left["position"])
    await waits.get()
    await _send(api, "new", "bob")
    assert _texts(await waiting) == ["new"]


async def test_each_of_several_that_wait_for_one_agent_is_answered(api: Api, waits: Waits) -> None:
    waiting = [_wait(api, "bob") for _ in range(5)]
    for _ in waiting:
        await waits.get()
    await _send(api, "hello", "bob")
    assert [_texts(answer) for answer in await asyncio.gather(*waiting)] == [["hello"]] * 5


async def test_message_to_all_wakes_very_many_without_failing_any(api: Api, waits: Waits) -> None:
    """All of them together would be more readers than may wait for a connection."""
    waiting = [_wait(api, f"agent{number}") for number in range(300)]
    for _ in waiting:
        await waits.get()
    await _send(api, "hello", None)
    assert [_texts(answer) for answer in await asyncio.gather(*waiting)] == [["hello"]] * 300


async def test_service_that_stops_answers_at_once(service: Service, waits: Waits) -> None:
    waiting = _wait(service.api, "bob")
    await waits.get()
    service.stop.set()
    assert (await waiting).expect(200)["items"] == []


async def test_key_that_is_revoked_ends_the_wait(service: Service, waits: Waits) -> None:
    await make_key(service.dsn)
    key = await make_key(service.dsn, "agent", "bob")
    api = service.api.with_key(key.text)
    await eventually(lambda: _is_known(api), describe="the service knows the key")
    waiting = _wait(api, "bob")
    await waits.get()
    await revoke_key(service.dsn, key)
    (await waiting).expect(401, "unauthorized")


async def _is_known(api: Api) -> bool:
    return (await api.get("agents/bob/inbox")).status == 200


async def test_agent_may_wait_only_at_its_own_inbox(service: Service) -> None:
    await make_key(service.dsn)
    key = await make_key(service.dsn, "agent", "bob")
    api = service.api.with_key(key.text)
    await eventually(lambda: _is_known(api), describe="the service knows the key")
    (await _wait(api, "carol")).expect(403, "wrong_agent")


async def test_waiting_requests_count_as_open_streams(database: str, waits: Waits) -> None:
    async with running_service(database, max_streams=2) as service:
        waiting = [_wait(service.api, "bob") for _ in range(2)]
        for _ in waiting:
            await waits.get()
        (await _wait(service.api, "carol")).expect(503, "streams_full")
        (await service.api.get("agents/carol/inbox")).expect(200)
        await _send(service.api, "hello", None)
        for one in waiting:
            assert _texts(await one) == ["hello"]
        assert _texts(await _wait(service.api, "carol")) == ["hello"]


async def test_client_that_has_gone_is_no_longer_waited_for(
    arrivals: list[Arrivals], database: str, waits: Waits
) -> None:
    async with running_service(database) as service:
        async with aiohttp.ClientSession(service.url) as session:
            request = asyncio.create_task(session.get("/api/v1/agents/bob/inbox?wait_seconds=55"))
            await waits.get()
            assert arrivals[0]._watchers == {"bob": 1}
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
        await eventually(
            lambda: not arrivals[0]._watchers and not arrivals[0]._hints, describe="nobody waits any more"
        )


@pytest.mark.parametrize("seconds", ["-1", "55.1", "nan", "inf", "soon", ""])
async def test_invalid_times_to_wait_are_refused(api: Api, seconds: str) -> None:
    answer = (await api.get("agents/bob/inbox", wait_seconds=seconds)).expect(422, "validation_failed")
    assert answer["errors"][0]["field"] == "wait_seconds"
