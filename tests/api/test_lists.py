"""What all lists and reads have in common: pages, and positions to wait for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from service import reading
from service.http import lists
from tests.api.client import running_service
from tests.api.inputs import LISTS, READS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.client import Api, Service


async def _populate(api: Api, count: int) -> None:
    """Add this many entries to each list, and a few more events."""
    for number in range(count):
        await api.put(f"agents/agent-{number}", role="writer")
        await api.post("messages", from_agent="ada", message=f"m{number}")
        resources = {"emailId": f"e{number}"}
        await api.post("operations", agent="ada", action="respond", resources=resources)
        await api.post("operations", agent="bob", action="respond", resources=resources)
        await api.post("budget/reservations", agent="ada", tokens=1)
        await api.post("tasks", title=f"t{number}")
        await api.post("emails", gmail_message_id=f"g{number}", from_email="c@example.com")
        await api.put(f"jobs/job-{number}", task="token_monitor", every="300d", overlap="allow_all")
        await api.post(f"jobs/job-{number}/run")

    async def idle() -> bool:
        return not (await api.get("runs", status="running")).expect(200)["items"]

    await eventually(idle)


async def test_pages_of_every_list_add_up_to_the_whole_list(api: Api) -> None:
    await _populate(api, 4)
    for path in LISTS:
        whole = (await api.get(path)).expect(200)
        assert whole["next"] is None
        assert len(whole["items"]) >= 4
        # A page with exactly as many entries as there are is the last one, too.
        assert (await api.get(path, limit=len(whole["items"]))).expect(200) == whole
        pages: list[list[object]] = []
        after = None
        while not pages or after is not None:
            query = {"limit": 3} if after is None else {"limit": 3, "after": after}
            answer = (await api.get(path, **query)).expect(200)
            pages.append(answer["items"])
            after = answer["next"]
        assert [item for page in pages for item in page] == whole["items"], path
        assert all(len(page) == 3 for page in pages[:-1])


async def test_page_of_large_entries_ends_early_and_the_next_continues(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "PAGE_BYTES", 250_000)
    monkeypatch.setattr(lists, "_INITIAL_ENTRIES", 2)
    sent = []
    for number in range(12):
        large = str(number) * (50_000 if number != 5 else 1)
        sent.append((await api.post("messages", from_agent="ada", message=large)).expect(201)["id"])
    for path in ("messages", "events?type=message_sent"):
        pages: list[list[dict[str, Any]]] = []
        after = 0
        while after is not None:
            answer = (await api.get(path, limit=1000, after=after)).expect(200)
            pages.append(answer["items"])
            after = answer["next"]
        assert all(0 < len(page) < 9 for page in pages)
        found = [item.get("data") or item for page in pages for item in page]
        assert [item.get("message_id") or item["id"] for item in found] == sent


@pytest.mark.parametrize("small", [0, 1, 20, 21, 22, 500])
async def test_amount_read_for_a_page_is_bounded_when_large_entries_follow_small(small: int) -> None:
    entries = [{"position": n + 1, "text": "x" * (1 if n < small else 1_000_000)} for n in range(1_000)]
    read: list[int] = []

    async def fetch(after: int, count: int) -> list[dict[str, Any]]:
        found = entries[after : after + count]
        read.append(sum(len(str(entry["text"])) for entry in found))
        return found

    shown = await lists.read_page(fetch, 0, 1_000)
    assert shown["next"] == len(shown["items"]) == small + 9
    assert max(read) <= 80_000_000
    assert sum(read) <= 80_000_000 + lists.PAGE_BYTES


async def test_page_of_small_entries_is_full() -> None:
    counts: list[int] = []

    async def fetch(after: int, count: int) -> list[dict[str, Any]]:
        counts.append(count)
        return [{"position": n + 1} for n in range(after, min(after + count, 150))]

    for limit, expected in ((20, [21]), (100, [21, 80]), (1_000, [21, 80, 80])):
        counts.clear()
        shown = await lists.read_page(fetch, 0, limit)
        assert counts == expected
        assert len(shown["items"]) == min(limit, 150)
        assert shown["next"] == (limit if limit < 150 else None)


async def test_page_of_large_entries_from_memory_ends_early(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "PAGE_BYTES", 5_000)
    large = {f"kind-{number}": "x" * 490 for number in range(4)}
    for number in range(10):
        await api.put(f"agents/agent-{number}", role="r", url=f"http://localhost/{'x' * 1_500}")
        resources = {**large, "number": str(number)}
        started = await api.post(
            "operations", agent="ada", action="a", resources=resources, ttl_seconds=600
        )
        started.expect(409 if number else 201)
        apart = {kind: f"{number}{value}" for kind, value in large.items()}
        started = await api.post("operations", agent="ada", action="a", resources=apart, ttl_seconds=600)
        started.expect(201)
        job = await api.put(f"jobs/job-{number}", task="token_monitor", every="300d", resources=large)
        job.expect(200)
    for path, order in (("operations?state=active", "fencing_token"), ("agents", "name"), ("jobs", "name")):
        pages: list[list[dict[str, Any]]] = []
        after = None
        while not pages or after is not None:
            query = {"limit": 1000} if after is None else {"limit": 1000, "after": after}
            answer = (await api.get(path, **query)).expect(200)
            pages.append(answer["items"])
            after = answer["next"]
        assert all(0 < len(page) <= 4 for page in pages), path
        found = [item[order] for page in pages for item in page]
        assert len(found) >= 10
        assert found == sorted(set(found))


def test_page_stops_building_entries_when_it_is_full() -> None:
    made = []

    def entries() -> Iterator[dict[str, Any]]:
        for position in range(1, 51):
            made.append(position)
            yield {"position": position}

    assert lists.page(entries(), 3)["next"] == 3
    assert made == [1, 2, 3, 4]


async def test_active_operations_are_listed_in_order_of_their_start(api: Api) -> None:
    ids = []
    for number in range(6):
        claim = {"agent": f"agent-{number % 2}", "action": "a", "resources": {"n": str(number)}}
        ids.append((await api.post("operations", **claim, ttl_seconds=600)).expect(201)["id"])
    for place in (4, 0, 2):
        (await api.post(f"operations/{ids[place]}/heartbeat")).expect(200)
    (await api.post(f"operations/{ids[1]}/finish", outcome="succeeded")).expect(200)
    shown = (await api.get("operations", state="active")).expect(200)["items"]
    assert [item["id"] for item in shown] == [ids[0], *ids[2:]]
    first = (await api.get("operations", state="active", agent="agent-1", limit=1)).expect(200)
    rest = (await api.get("operations", state="active", agent="agent-1", after=first["next"])).expect(200)
    assert [item["id"] for item in (*first["items"], *rest["items"])] == [ids[3], ids[5]]


async def test_min_position_waits_until_the_answer_covers_it(service: Service) -> None:
    api = service.api
    await api.put("agents/ada", role="writer")
    ahead = await service.head() + 1
    waiting = [asyncio.create_task(api.get(path, min_position=ahead)) for path in READS]
    await asyncio.wait(waiting, timeout=0.2)
    assert not any(task.done() for task in waiting)
    await api.post("tasks", title="what they wait for")
    for answer in await asyncio.gather(*waiting):
        answer.expect(200)


async def test_min_position_that_is_not_reached_in_time_is_answered_with_504(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.2)
    await service.api.put("agents/ada", role="writer")
    head = await service.head()
    for path in (*READS, "events/stream"):
        late = (await service.api.get(path, min_position=head + 1_000)).expect(504, "not_yet")
        assert 0 < late["covered"] <= head


async def test_position_beyond_the_head_is_answered_with_the_head(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 0.2)
    await service.api.put("agents/ada", role="writer")
    head = await service.head()
    assert (await service.api.get("events", after=head)).expect(200)["items"] == []
    parameters = [(path, "min_position") for path in (*READS, "events/stream")]
    parameters += [("events", "after"), ("events/stream", "after")]
    for path, name in parameters:
        problem = (await service.api.get(path, **{name: head + 1})).expect(504, "not_yet")
        assert problem["ends_at"] == head


async def test_min_position_waits_for_writes_of_another_process(database: str) -> None:
    async with running_service(database) as one, running_service(database) as other:
        for number in range(10):
            sent = (await one.api.post("messages", from_agent="ada", message=f"m{number}")).expect(201)
            listed = await other.api.get("messages", min_position=sent["position"])
            assert listed.expect(200)["items"][-1]["id"] == sent["id"]
            agent = await other.api.get("agents/ada", min_position=sent["position"])
            assert agent.expect(200)["position"] >= sent["position"]


async def test_requests_that_wait_for_a_position_share_reads_of_the_database(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STRICT_WAIT_SECONDS", 1.0)
    reads: list[float] = []
    connection = reading.ReadTables.connection

    def record_and_connect(tables: reading.ReadTables) -> Any:
        reads.append(asyncio.get_running_loop().time())
        return connection(tables)

    monkeypatch.setattr(reading.ReadTables, "connection", record_and_connect)
    async with running_service(database) as one:

        async def is_active_projector() -> bool:
            return "squad_projector_active 1.0" in (await one.api.get("/metrics")).body

        await eventually(is_active_projector)
        async with running_service(database) as other:
            sent = (await one.api.post("messages", from_agent="ada", message="m")).expect(201)["position"]
            (await other.api.get("messages", min_position=sent)).expect(200)
            reads.clear()
            waiting = [other.api.get("messages", min_position=sent + 1_000) for _ in range(100)]
            for answer in await asyncio.gather(*waiting):
                assert answer.expect(504, "not_yet")["ends_at"] == sent
            # One at once, one every quarter of a second, one for the log's end; and one per notification.
            assert len(reads) < 30


async def test_every_process_shows_its_own_writes_at_once(database: str) -> None:
    async with running_service(database) as one, running_service(database) as other:
        for number in range(10):
            for api in (one.api, other.api):
                created = (await api.post("tasks", title=f"t{number}")).expect(201)
                assert (await api.get(f"tasks/{created['id']}")).expect(200)["title"] == f"t{number}"


def _recorded(calls: list[str], name: str) -> Any:
    """The method of this name, which also records that it was called."""
    original = getattr(reading.ReadTables, name)

    async def record_and_call(*arguments: Any) -> Any:
        calls.append(name)
        return await original(*arguments)

    return record_and_call


async def test_requests_that_wait_for_a_position_are_answered_on_shutdown(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []
    for name in ("_wait", "wait_for_state"):
        monkeypatch.setattr(reading.ReadTables, name, _recorded(waits, name))
    async with running_service(database) as service:
        await service.api.put("agents/ada", role="writer")
        head = await service.head()
        waits.clear()
        waiting = [
            asyncio.create_task(service.api.get(path, min_position=head + 1_000))
            for path in ("messages", "budget")
        ]
        await eventually(lambda: set(waits) == {"_wait", "wait_for_state"})
        stopping = asyncio.get_running_loop().time()
        service.stop.set()
        for answer in await asyncio.gather(*waiting):
            answer.expect(504, "not_yet")
        assert asyncio.get_running_loop().time() - stopping < 1
