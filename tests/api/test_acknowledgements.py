"""Who has acknowledged a message, as its sender sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.http.v1 import messages

if TYPE_CHECKING:
    import pytest

    from tests.api.client import Api


async def _sent(api: Api, to_agent: str | None) -> str:
    sent = await api.post("messages", from_agent="ada", message="hello", to_agent=to_agent)
    return str(sent.expect(201)["id"])


async def test_message_shows_who_acknowledged_it_in_order(api: Api) -> None:
    message = await _sent(api, None)
    assert (await api.get(f"messages/{message}")).expect(200)["acknowledgements"] == []
    positions = [
        (await api.post(f"messages/{message}/ack", agent=agent)).expect(200)["position"]
        for agent in ("carol", "bob", "carol")
    ]
    shown = (await api.get(f"messages/{message}")).expect(200)["acknowledgements"]
    assert [(ack["agent"], ack["position"]) for ack in shown] == [
        ("carol", positions[0]),
        ("bob", positions[1]),
    ]
    assert all(ack["acknowledged_at"].endswith("Z") for ack in shown)


async def test_acknowledgements_of_other_messages_are_not_shown(api: Api) -> None:
    acknowledged, other = await _sent(api, "bob"), await _sent(api, "bob")
    (await api.post(f"messages/{acknowledged}/ack", agent="bob")).expect(200)
    assert (await api.get(f"messages/{other}")).expect(200)["acknowledgements"] == []


async def test_only_so_many_are_shown(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_ACKNOWLEDGEMENTS", 2)
    message = await _sent(api, None)
    for agent in ("bob", "carol", "dan"):
        (await api.post(f"messages/{message}/ack", agent=agent)).expect(200)
    shown = (await api.get(f"messages/{message}")).expect(200)["acknowledgements"]
    assert [ack["agent"] for ack in shown] == ["bob", "carol"]
