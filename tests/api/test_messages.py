"""Messages: sent, listed, read from an inbox, acknowledged."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from projections import storage
from service import reading

if TYPE_CHECKING:
    from tests.api.client import Answer, Api

UNKNOWN = "00000000-0000-7000-8000-000000000000"


async def _send(api: Api, sender: str, text: str, **more: object) -> dict[str, object]:
    return (await api.post("messages", from_agent=sender, message=text, **more)).expect(201)


def _texts(answer: Answer) -> list[str]:
    return [item["message"] for item in answer.expect(200)["items"]]


async def test_a_sent_message_is_in_the_list_at_once(api: Api) -> None:
    data = {"emailId": "e1", "nested": {"list": [1, 2.5, None, True, "ü\u2028"]}}
    sent = await _send(api, "ada", "hello", to_agent="bob", task_id="task-7", data=data)
    [shown] = (await api.get("messages")).expect(200)["items"]
    assert shown == {
        "id": sent["id"],
        "from_agent": "ada",
        "to_agent": "bob",
        "message": "hello",
        "task_id": "task-7",
        "data": data,
        "created_at": shown["created_at"],
        "position": sent["position"],
    }
    assert shown["created_at"].endswith("Z")


async def test_messages_are_filtered_by_sender_receiver_and_task(api: Api) -> None:
    await _send(api, "ada", "one", to_agent="bob")
    await _send(api, "ada", "two", to_agent="carol", task_id="t")
    await _send(api, "bob", "three", task_id="t")
    assert _texts(await api.get("messages", from_agent="ada")) == ["one", "two"]
    assert _texts(await api.get("messages", to_agent="bob")) == ["one"]
    assert _texts(await api.get("messages", task_id="t")) == ["two", "three"]
    assert _texts(await api.get("messages", from_agent="ada", task_id="t")) == ["two"]
    assert _texts(await api.get("messages", from_agent="nobody")) == []


async def test_an_unknown_sender_is_registered_by_sending(api: Api) -> None:
    await _send(api, "stranger", "hello")
    assert (await api.get("agents/stranger")).expect(200)["role"] == "unknown"


async def test_the_inbox_holds_what_was_sent_to_the_agent_or_to_all(api: Api) -> None:
    await _send(api, "ada", "for bob", to_agent="bob")
    await _send(api, "ada", "for all")
    await _send(api, "ada", "for carol", to_agent="carol")
    assert _texts(await api.get("agents/bob/inbox")) == ["for bob", "for all"]
    assert _texts(await api.get("agents/carol/inbox")) == ["for all", "for carol"]


async def test_an_acknowledged_message_leaves_the_inbox_of_that_agent_alone(api: Api) -> None:
    sent = await _send(api, "ada", "for all")
    done = (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200)
    assert (done["id"], done["agent"]) == (sent["id"], "bob")
    assert _texts(await api.get("agents/bob/inbox")) == []
    assert _texts(await api.get("agents/carol/inbox")) == ["for all"]


def _note_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions after which an inbox is looked through from here on, one for each look."""
    looked_from: list[int] = []
    select = storage.select

    async def noting(connection: Any, table: Any, where: Any, values: dict[str, Any]) -> Any:
        looked_from.append(values["after"])
        return await select(connection, table, where, values)

    monkeypatch.setattr(storage, "select", noting)
    return looked_from


async def test_what_came_before_an_inbox_was_empty_is_not_looked_through_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that keeps up would have all that was ever sent to it looked through at each look."""
    looked_from = _note_looks(monkeypatch)
    assert _texts(await api.get("agents/bob/inbox")) == []
    for text in ("one", "two"):
        sent = await _send(api, "ada", text, to_agent="bob")
        last = (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200)
    assert _texts(await api.get("agents/bob/inbox")) == []
    assert _texts(await api.get("agents/bob/inbox", min_position=last["position"])) == []
    await _send(api, "ada", "for all")
    assert _texts(await api.get("agents/bob/inbox")) == ["for all"]
    assert _texts(await api.get("agents/carol/inbox")) == ["for all"]
    # Nobody was called bob yet at the first look, and nobody is called carol.
    assert (looked_from[:2], looked_from[-1]) == ([0, 0], 0)
    assert looked_from[3] >= last["position"]


async def test_messages_that_stay_in_an_inbox_do_not_have_it_looked_through_from_there(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _send(api, "bob", "here I am", to_agent="ada")
    kept = await _send(api, "ada", "kept", to_agent="bob")
    for text in ("one", "two"):
        sent = await _send(api, "ada", text, to_agent="bob")
        last = (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200)
    assert _texts(await api.get("agents/bob/inbox", min_position=last["position"])) == ["kept"]
    looked_from = _note_looks(monkeypatch)
    await _send(api, "ada", "new", to_agent="bob")
    assert _texts(await api.get("agents/bob/inbox")) == ["kept", "new"]
    # What is left is asked for by its position; but for that, only what came since is looked at.
    assert looked_from[0] == 0
    assert looked_from[1] >= last["position"]
    await api.post(f"messages/{kept['id']}/ack", agent="bob")
    assert _texts(await api.get("agents/bob/inbox")) == ["new"]


@pytest.mark.parametrize("most_left", [0, 3, 32])
async def test_an_inbox_holds_the_same_however_it_is_read(
    api: Api, monkeypatch: pytest.MonkeyPatch, most_left: int
) -> None:
    monkeypatch.setattr(reading, "MAX_REMEMBERED_MESSAGES", most_left)
    random, there = Random(7), dict[int, str]()
    await _send(api, "bob", "here I am", to_agent="ada")
    for number in range(60):
        to_agent = random.choice(("bob", None, "carol"))
        sent = await _send(api, "ada", f"m{number}", to_agent=to_agent)
        if to_agent != "carol":
            there[int(str(sent["position"]))] = str(sent["id"])
        if there and random.random() < 0.6:
            position = random.choice(list(there))
            await api.post(f"messages/{there.pop(position)}/ack", agent="bob")
        after = random.choice((0, 0, *there, 1_000))
        limit = random.choice((1, 2, 5, 1_000))
        page = (await api.get("agents/bob/inbox", after=after, limit=limit)).expect(200)
        expected = [position for position in sorted(there) if position > after]
        assert [item["position"] for item in page["items"]] == expected[:limit]
        assert page["next"] == (expected[limit - 1] if len(expected) > limit else None)


async def test_a_page_behind_an_inbox_says_nothing_of_what_is_before_it(api: Api) -> None:
    sent = await _send(api, "ada", "one", to_agent="bob")
    await _send(api, "bob", "here I am")
    assert _texts(await api.get("agents/bob/inbox", after=sent["position"], limit=1)) == ["here I am"]
    assert _texts(await api.get("agents/bob/inbox", after=10_000)) == []
    assert _texts(await api.get("agents/bob/inbox")) == ["one", "here I am"]


async def test_acknowledging_twice_changes_nothing_more(api: Api) -> None:
    sent = await _send(api, "ada", "for bob", to_agent="bob")
    first = (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200)
    assert (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200) == first


async def test_only_who_was_addressed_can_acknowledge(api: Api) -> None:
    sent = await _send(api, "ada", "for bob", to_agent="bob")
    (await api.post(f"messages/{sent['id']}/ack", agent="eve")).expect(409, "not_addressed")
    (await api.post(f"messages/{UNKNOWN}/ack", agent="bob")).expect(404, "message_not_found")
