"""What is read after the log was replaced, as by a fail-over to a standby that lacked its last events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service import reading
from tests.integration.test_replaced_log import replace_events_after
from tests.support.components import connected, terminate_backends
from tests.support.wait import eventually

if TYPE_CHECKING:
    import pytest

    from tests.api.client import Answer, Service


async def _replace_log(service: Service, after: int) -> None:
    """Take the events after a position back, and their effects on the tables. Only the writer is told."""
    async with connected(service.dsn) as connection:
        await replace_events_after(connection, after)
        await connection.execute("DELETE FROM squad_messages WHERE position > %s", (after,))
        await connection.execute("UPDATE projections SET position = least(position, %s)", (after,))
        assert await terminate_backends(connection, "squad writer") == 1
    await eventually(lambda: _is_replaced(service), describe="the writer has noticed")


async def _is_replaced(service: Service) -> bool:
    return "squad_log_replacements_total 1.0" in (await service.api.get("/metrics")).body


async def _is_waited(service: Service) -> bool:
    return "squad_open_streams 1.0" in (await service.api.get("/metrics")).body


async def _send(service: Service, text: str, to_agent: str = "bob") -> int:
    body = {"from_agent": "ada", "to_agent": to_agent, "message": text}
    return int((await service.api.post("messages", **body)).expect(201)["position"])


async def _send_and_lose(service: Service) -> int:
    """Send a message, and others that get lost later; return the position of the one that is left."""
    kept = await _send(service, "kept")
    for _ in range(5):
        await _send(service, "lost")
    return kept


def _texts(answer: Answer) -> list[str]:
    return [item["message"] for item in answer.expect(200)["items"]]


async def test_reader_that_names_a_position_of_the_new_log_sees_it(service: Service) -> None:
    await _replace_log(service, await _send_and_lose(service))
    sent = await _send(service, "new")
    assert _texts(await service.api.get("agents/bob/inbox", min_position=sent)) == ["kept", "new"]


async def test_request_that_waits_is_answered_with_a_message_of_the_new_log(service: Service) -> None:
    kept = await _send_and_lose(service)
    waiting = asyncio.create_task(service.api.get("agents/carol/inbox", wait_seconds=10))
    await eventually(lambda: _is_waited(service), describe="the request waits")
    await _replace_log(service, kept)
    await _send(service, "new", "carol")
    assert _texts(await waiting) == ["new"]


async def test_request_that_waits_after_a_position_that_is_gone_is_told(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would miss the messages that get the positions up to there."""
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.1)
    kept = await _send_and_lose(service)
    gone = await service.head()
    waiting = asyncio.create_task(service.api.get("agents/bob/inbox", after=gone, wait_seconds=10))
    await eventually(lambda: _is_waited(service), describe="the request waits")
    await _replace_log(service, kept)
    assert (await waiting).expect(504, "not_yet")["ends_at"] == kept
