"""The example agent that waits at its inbox, against the service."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from examples import inbox_agent
from examples.inbox_agent import InboxAgent, Squad, Work
from tests.api.client import running_service
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.client import Api, Service

NAME = "echo"


@asynccontextmanager
async def _running(service: Service, processes: int = 1, squad: Squad | None = None) -> AsyncIterator[None]:
    """Let the agent run, as this many processes would, for the duration of the block."""
    agents = [InboxAgent(squad or Squad(service.url), NAME) for _ in range(processes)]
    running = [asyncio.create_task(asyncio.to_thread(agent.run)) for agent in agents]
    try:
        yield
    finally:
        for agent in agents:
            agent.stop.set()
        await asyncio.gather(*running)


@asynccontextmanager
async def _proxy(status: int, body: str) -> AsyncIterator[str]:
    """A proxy that cannot reach the service, and says so to every request; yields its address."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, text=body, content_type="text/html")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    try:
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class _BehindProxy(Squad):
    """The squad's API, behind a proxy that does not pass on the first look at the inbox and renewal."""

    def __init__(self, url: str, proxy_url: str) -> None:
        super().__init__(url)
        self._proxy = Squad(proxy_url)
        self.to_fail = ["/operations/", "/inbox"]

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, key: str | None = None
    ) -> dict[str, Any]:
        """Send a request, or have the proxy answer it."""
        for part in self.to_fail:
            if part in path:
                self.to_fail.remove(part)
                return self._proxy.call(method, path, body, key=key)
        return super().call(method, path, body, key=key)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the agent look again soon, so that it notices that it is to stop."""
    monkeypatch.setattr(inbox_agent, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(inbox_agent, "MIN_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(inbox_agent, "MAX_PAUSE_SECONDS", 0.1)


async def _ask(api: Api, text: str) -> str:
    sent = await api.post("messages", from_agent="ada", to_agent=NAME, message=text)
    return str(sent.expect(201)["id"])


async def _items(api: Api, path: str, **query: object) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await api.get(path, **query)).expect(200)["items"]
    return items


async def _answers(api: Api) -> list[str]:
    return [message["message"] for message in await _items(api, "messages", from_agent=NAME)]


async def _is_inbox_empty(api: Api) -> bool:
    return not await _items(api, f"agents/{NAME}/inbox")


async def test_agent_answers_acknowledges_and_reports_its_tokens(service: Service) -> None:
    api = service.api
    async with _running(service):
        await _ask(api, "four")
        await eventually(lambda: _is_inbox_empty(api))
        assert await _answers(api) == ["Your message has 4 characters."]
    budget = (await api.get("budget")).expect(200)
    assert (budget["used"], budget["reserved"]) == (20, 0)
    [operation] = await _items(api, "operations")
    assert (operation["agent"], operation["state"], operation["outcome"]) == (NAME, "finished", "succeeded")


async def test_several_processes_answer_each_message_once(service: Service) -> None:
    api = service.api
    async with _running(service, processes=3):
        for number in range(1, 11):
            await _ask(api, "x" * number)
        await eventually(lambda: _is_inbox_empty(api))
    assert sorted(await _answers(api)) == sorted(f"Your message has {n} characters." for n in range(1, 11))
    budget = (await api.get("budget")).expect(200)
    assert (budget["used"], budget["reserved"]) == (10 * 20, 0)


async def test_answers_and_messages_to_all_are_acknowledged_but_not_answered(service: Service) -> None:
    """Otherwise two agents of this kind would answer each other for ever."""
    api = service.api
    async with _running(service):
        await api.post("messages", from_agent="ada", message="to all")
        await api.post("messages", from_agent="ada", to_agent=NAME, message="so?", data={"answers": "x"})
        await _ask(api, "four")
        await eventually(lambda: _is_inbox_empty(api))
    assert await _answers(api) == ["Your message has 4 characters."]


async def test_profile_that_somebody_else_registered_is_left_alone(service: Service) -> None:
    api = service.api
    await api.put(f"agents/{NAME}", role="clerk", priority=5)
    async with _running(service):
        await _ask(api, "four")
        await eventually(lambda: _is_inbox_empty(api))
    agent = (await api.get(f"agents/{NAME}")).expect(200)
    assert (agent["role"], agent["priority"]) == ("clerk", 5)


async def test_answer_that_a_dead_process_has_sent_is_not_sent_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = service.api
    question = await _ask(api, "hello")
    await api.post(
        "messages",
        {"Idempotency-Key": f"answer-{question}"},
        from_agent=NAME,
        to_agent="ada",
        message="from the one that died",
    )
    monkeypatch.setattr(inbox_agent, "answer", lambda message: Work("another text", 20))
    async with _running(service):
        await eventually(lambda: _is_inbox_empty(api))
    assert await _answers(api) == ["from the one that died"]


async def test_messages_wait_while_there_are_no_tokens(database: str) -> None:
    async with running_service(database, daily_tokens=100) as service:
        api = service.api
        async with _running(service):
            await _ask(api, "hello")
            await eventually(lambda: _items(api, "events", type="tokens_denied"))
            assert await _answers(api) == []
            (await api.put("budget", daily_tokens=10_000)).expect(200)
            await eventually(lambda: _is_inbox_empty(api))
        assert await _answers(api) == ["Your message has 5 characters."]
        states = {operation["outcome"] for operation in await _items(api, "operations")}
        assert states == {"failed", "succeeded"}


def _answer_once_set(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have the agent renew its claim often, and answer only once the event returned is set."""
    renewed = threading.Event()

    def answer_once_renewed(message: dict[str, Any]) -> Work:
        assert renewed.wait(30)
        return Work("at last", 20)

    monkeypatch.setattr(inbox_agent, "RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(inbox_agent, "answer", answer_once_renewed)
    return renewed


async def test_claim_is_renewed_while_an_answer_takes_long(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = service.api
    renewed = _answer_once_set(monkeypatch)
    async with _running(service):
        await _ask(api, "hello")
        await eventually(lambda: _items(api, "events", type="operation_renewed"))
        renewed.set()
        await eventually(lambda: _is_inbox_empty(api))
    assert await _answers(api) == ["at last"]


@pytest.mark.parametrize(
    ("status", "body"), [(502, "<h1>Bad Gateway</h1>"), (200, "<h1>Welcome</h1>"), (502, "{}"), (502, "[]")]
)
async def test_answer_that_is_not_the_services_is_an_error_of_the_network(status: int, body: str) -> None:
    async with _proxy(status, body) as url:
        with pytest.raises(OSError):  # noqa: PT011 - it has no words of its own
            await asyncio.to_thread(Squad(url).call, "GET", "/budget")


async def test_agent_survives_a_proxy_that_answers_in_place_of_the_service(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = service.api
    renewed = _answer_once_set(monkeypatch)
    async with _proxy(502, "<h1>Bad Gateway</h1>") as proxy_url:
        squad = _BehindProxy(service.url, proxy_url)
        async with _running(service, squad=squad):
            await _ask(api, "hello")
            await eventually(lambda: _items(api, "events", type="operation_renewed"))
            renewed.set()
            await eventually(lambda: _is_inbox_empty(api))
        assert squad.to_fail == []
    assert await _answers(api) == ["at last"]


async def test_claim_that_is_lost_is_not_renewed_any_more(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_agent, "RENEWAL_SECONDS", 0.01)
    begun = await service.api.post("operations", agent=NAME, action="answer", resources={"messageId": "1"})
    operation = f"operations/{begun.expect(201)['id']}"
    (await service.api.post(f"{operation}/finish", outcome="failed")).expect(200)
    agent = InboxAgent(Squad(service.url), NAME)
    done = threading.Event()
    try:
        async with asyncio.timeout(30):
            await asyncio.to_thread(agent._renew, f"/{operation}", done)
    finally:
        done.set()


async def test_tokens_are_released_when_no_answer_is_found(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = service.api

    def fail(message: dict[str, Any]) -> Work:
        raise ZeroDivisionError(message["message"])

    monkeypatch.setattr(inbox_agent, "answer", fail)
    await _ask(api, "hello")
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(InboxAgent(Squad(service.url), NAME).run)
    budget = (await api.get("budget")).expect(200)
    assert (budget["used"], budget["reserved"]) == (0, 0)
    [operation] = await _items(api, "operations")
    assert operation["outcome"] == "failed"
    assert not await _is_inbox_empty(api)
