"""Requests that wait for a message to arrive in an inbox."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from eventstore.listener import wait_for_hint
from service.arrivals import MAX_CONCURRENT_READS, Arrivals
from service.http.v1 import inbox
from tests.api.client import running_service
from tests.support.components import connected
from tests.support.keys import make_key, revoke_key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

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

    monkeypatch.setattr(inbox, "wait_for_hint", note_and_wait)
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


@asynccontextmanager
async def _no_message_gets_into_the_tables(dsn: str) -> AsyncIterator[None]:
    async with connected(dsn) as connection, connection.transaction():
        await connection.execute("LOCK TABLE squad_messages IN EXCLUSIVE MODE")
        yield


def _record_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The agents whose inboxes are read from now on, one for each time."""
    agents: list[str] = []
    read = inbox._read_inbox

    async def read_and_record(services: Any, agent: str, *arguments: Any) -> Any:
        found = await read(services, agent, *arguments)
        agents.append(agent)
        return found

    monkeypatch.setattr(inbox, "_read_inbox", read_and_record)
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


async def test_message_that_is_not_yet_in_the_tables_is_answered_once_it_is(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent before the request began to wait, so it does not wake it."""
    read_for = _record_reads(monkeypatch)
    async with _no_message_gets_into_the_tables(service.dsn):
        await _send(service.api, "hello", "bob")
        waiting = _wait(service.api, "bob", 8)
        await eventually(lambda: read_for, describe="the empty inbox was read")
    assert _texts(await waiting) == ["hello"]


async def test_wait_ends_in_time_even_if_the_message_does_not_get_into_the_tables(
    service: Service, waits: Waits
) -> None:
    waiting = _wait(service.api, "bob", 2)
    await waits.get()
    async with _no_message_gets_into_the_tables(service.dsn):
        await _send(service.api, "hello", "bob")
        assert _texts(await waiting) == []
    assert _texts(await _wait(service.api, "bob")) == ["hello"]


async def test_requests_for_a_later_position_do_not_hold_up_others(
    arrivals: list[Arrivals], database: str
) -> None:
    async with running_service(database) as service:
        later = await service.head() + 1_000
        early = [_wait(service.api, "bob", min_position=later) for _ in range(2 * MAX_CONCURRENT_READS)]
        await eventually(lambda: arrivals[0]._watchers == {"bob": len(early)}, describe="all of them wait")
        await _send(service.api, "hello", "carol")
        assert _texts(await _wait(service.api, "carol")) == ["hello"]
        assert not any(request.done() for request in early)
        for request in early:
            request.cancel()
        await asyncio.gather(*early, return_exceptions=True)


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
