"""Messages: sending, lists, inboxes and acknowledgements."""

from __future__ import annotations

import asyncio
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


async def test_sent_message_is_listed_at_once(api: Api) -> None:
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


async def test_unknown_sender_is_registered_by_sending(api: Api) -> None:
    await _send(api, "stranger", "hello")
    assert (await api.get("agents/stranger")).expect(200)["role"] == "unknown"


async def test_inbox_holds_messages_to_the_agent_and_to_all(api: Api) -> None:
    await _send(api, "ada", "for bob", to_agent="bob")
    await _send(api, "ada", "for all")
    await _send(api, "ada", "for carol", to_agent="carol")
    assert _texts(await api.get("agents/bob/inbox")) == ["for bob", "for all"]
    assert _texts(await api.get("agents/carol/inbox")) == ["for all", "for carol"]


async def test_acknowledged_message_leaves_only_the_inbox_of_that_agent(api: Api) -> None:
    sent = await _send(api, "ada", "for all")
    done = (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200)
    assert (done["id"], done["agent"]) == (sent["id"], "bob")
    assert _texts(await api.get("agents/bob/inbox")) == []
    assert _texts(await api.get("agents/carol/inbox")) == ["for all"]


def _record_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions after which inboxes are read from now on, one for each query."""
    read_after: list[int] = []
    select = storage.select

    async def record_and_select(connection: Any, table: Any, where: Any, values: dict[str, Any]) -> Any:
        read_after.append(values["after"])
        return await select(connection, table, where, values)

    monkeypatch.setattr(storage, "select", record_and_select)
    return read_after


async def test_messages_from_before_an_inbox_was_empty_are_not_read_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, all that was ever sent to an agent that keeps up would be read each time."""
    read_after = _record_reads(monkeypatch)
    assert _texts(await api.get("agents/bob/inbox")) == []
    for text in ("one", "two"):
        sent = await _send(api, "ada", text, to_agent="bob")
        last = (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200)
    assert _texts(await api.get("agents/bob/inbox")) == []
    assert _texts(await api.get("agents/bob/inbox", min_position=last["position"])) == []
    await _send(api, "ada", "for all")
    assert _texts(await api.get("agents/bob/inbox")) == ["for all"]
    assert _texts(await api.get("agents/carol/inbox")) == ["for all"]
    # There was no agent bob yet at the first read, and there is no agent carol.
    assert (read_after[:2], read_after[-1]) == ([0, 0], 0)
    assert read_after[3] >= last["position"]


async def test_unacknowledged_message_does_not_make_later_ones_be_read_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _send(api, "bob", "here I am", to_agent="ada")
    kept = await _send(api, "ada", "kept", to_agent="bob")
    for text in ("one", "two"):
        sent = await _send(api, "ada", text, to_agent="bob")
        last = (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200)
    assert _texts(await api.get("agents/bob/inbox", min_position=last["position"])) == ["kept"]
    read_after = _record_reads(monkeypatch)
    await _send(api, "ada", "new", to_agent="bob")
    assert _texts(await api.get("agents/bob/inbox")) == ["kept", "new"]
    # The message that is left is read by its position; apart from that, only newer ones are read.
    assert read_after[0] == 0
    assert read_after[1] >= last["position"]
    await api.post(f"messages/{kept['id']}/ack", agent="bob")
    assert _texts(await api.get("agents/bob/inbox")) == ["new"]


@pytest.mark.parametrize("most_left", [0, 3, 32])
async def test_inbox_is_the_same_however_many_messages_are_remembered(
    api: Api, monkeypatch: pytest.MonkeyPatch, most_left: int
) -> None:
    monkeypatch.setattr(reading, "MAX_REMEMBERED_MESSAGES", most_left)
    random, unread = Random(7), dict[int, str]()
    await _send(api, "bob", "here I am", to_agent="ada")
    for number in range(60):
        to_agent = random.choice(("bob", None, "carol"))
        sent = await _send(api, "ada", f"m{number}", to_agent=to_agent)
        if to_agent != "carol":
            unread[int(str(sent["position"]))] = str(sent["id"])
        if unread and random.random() < 0.6:
            position = random.choice(list(unread))
            await api.post(f"messages/{unread.pop(position)}/ack", agent="bob")
        after = random.choice((0, 0, *unread, 1_000))
        limit = random.choice((1, 2, 5, 1_000))
        page = (await api.get("agents/bob/inbox", after=after, limit=limit)).expect(200)
        expected = [position for position in sorted(unread) if position > after]
        assert [item["position"] for item in page["items"]] == expected[:limit]
        assert page["next"] == (expected[limit - 1] if len(expected) > limit else None)


async def test_reading_a_later_page_does_not_hide_earlier_messages(api: Api) -> None:
    sent = await _send(api, "ada", "one", to_agent="bob")
    await _send(api, "bob", "here I am")
    assert _texts(await api.get("agents/bob/inbox", after=sent["position"], limit=1)) == ["here I am"]
    assert _texts(await api.get("agents/bob/inbox", after=10_000)) == []
    assert _texts(await api.get("agents/bob/inbox")) == ["one", "here I am"]


async def test_second_acknowledgement_changes_nothing(api: Api) -> None:
    sent = await _send(api, "ada", "for bob", to_agent="bob")
    first = (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200)
    again = (await api.post(f"messages/{sent['id']}/ack", agent="bob")).expect(200)
    assert again == {**first, "already_acknowledged": True}


async def test_only_an_addressee_can_acknowledge(api: Api) -> None:
    sent = await _send(api, "ada", "for bob", to_agent="bob")
    (await api.post(f"messages/{sent['id']}/ack", agent="eve")).expect(409, "not_addressed")
    (await api.post(f"messages/{UNKNOWN}/ack", agent="bob")).expect(404, "message_not_found")


async def test_one_of_two_processes_learns_that_it_was_first_when_both_acknowledge(api: Api) -> None:
    sent = await _send(api, "ada", "do it", to_agent="bob")
    answers = await asyncio.gather(*(api.post(f"messages/{sent['id']}/ack", agent="bob") for _ in range(2)))
    shown = [answer.expect(200) for answer in answers]
    assert sorted(answer["already_acknowledged"] for answer in shown) == [False, True]
    assert shown[0]["position"] == shown[1]["position"]
