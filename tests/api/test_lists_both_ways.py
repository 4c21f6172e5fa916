"""Lists that can be read from either end, and between two times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api

LISTS = (
    "messages",
    "operations",
    "operations?state=active",
    "conflicts",
    "tasks",
    "emails",
    "events",
    "runs",
)


async def _populate(api: Api, count: int) -> None:
    """Put so many entries in each list, each of a request of its own."""
    await api.put("jobs/poll", task="token_monitor", every="300d", overlap="allow_all")
    for number in range(count):
        await api.post("messages", from_agent="ada", message=f"m{number}")
        resources = {"emailId": f"e{number}"}
        for agent in ("ada", "bob"):
            await api.post("operations", agent=agent, action="a", resources=resources, ttl_seconds=600)
        await api.post("tasks", title=f"t{number}")
        await api.post("emails", gmail_message_id=f"g{number}", from_email="c@example.com")
        await api.post("jobs/poll/run")

    async def idle() -> bool:
        return not (await api.get("runs", status="running")).expect(200)["items"]

    await eventually(idle)


async def test_a_list_is_read_backwards_page_by_page_when_the_newest_come_first(api: Api) -> None:
    await _populate(api, 4)
    for path in LISTS:
        whole = (await api.get(path)).expect(200)["items"]
        assert (await api.get(path, order="asc")).expect(200)["items"] == whole
        pages: list[list[object]] = []
        after: int | None = 0
        while after is not None:
            answer = (await api.get(path, limit=3, order="desc", after=after)).expect(200)
            pages.append(answer["items"])
            after = answer["next"]
        assert [item for page in pages for item in page] == whole[::-1], path
        assert all(len(page) == 3 for page in pages[:-1])


def _recorded_position(item: dict[str, Any]) -> int:
    """Return the position at which an entry was first recorded, which orders its list."""
    named = (item.get(name) for name in ("fencing_token", "created_position", "position"))
    return int(next(position for position in named if position))


async def test_a_list_has_what_was_recorded_between_two_times_when_it_is_told_them(api: Api) -> None:
    await _populate(api, 4)
    events = (await api.get("events", limit=1000)).expect(200)["items"]
    recorded_at = {event["position"]: event["recorded_at"] for event in events}
    for path in LISTS:
        whole = (await api.get(path)).expect(200)["items"]
        times = [recorded_at[_recorded_position(item)] for item in whole]
        _, since, *_, until = sorted(set(times))
        after = [item for item, time in zip(whole, times, strict=True) if time >= since]
        before = [item for item, time in zip(whole, times, strict=True) if time < until]
        between = [item for item in after if item in before]
        assert len(between) < min(len(after), len(before)) < len(whole)
        for query, expected in (
            ({"since": since}, after),
            ({"until": until}, before),
            ({"since": since, "until": until}, between),
            ({"since": since, "until": since}, []),
        ):
            assert (await api.get(path, **query)).expect(200)["items"] == expected, (path, query)
            shown = (await api.get(path, **query, order="desc")).expect(200)
            assert (shown["items"], shown["next"]) == (expected[::-1], None), (path, query)


async def test_filters_hold_when_the_newest_come_first(api: Api) -> None:
    await _populate(api, 3)
    for path in (
        "events?type=message_sent",
        "events?agent=ada",
        "events?stream=agent-ada",
        "messages?from_agent=ada",
        "operations?state=active,expired",
        "operations?agent=ada",
        "tasks?status=new",
        "emails?category=unclassified",
        "runs?job=poll",
        "runs?status=succeeded,failed",
    ):
        forwards = (await api.get(path)).expect(200)["items"]
        assert forwards
        assert (await api.get(path, order="desc")).expect(200)["items"] == forwards[::-1], path
        [newest] = (await api.get(path, order="desc", limit=1)).expect(200)["items"]
        assert newest == forwards[-1]


async def test_an_order_is_refused_when_there_is_none_of_that_name(api: Api) -> None:
    for path, order in (("runs", "newest"), ("runs", ""), ("agents", "desc"), ("agents/ada/inbox", "desc")):
        fault = (await api.get(path, order=order)).expect(422, "validation_failed")
        assert [error["field"] for error in fault["errors"]] == ["order"], path
