"""Two service processes on one database decide consistently: no claim or token is granted twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from tests.e2e.conftest import Pair
    from tests.support.process import ServiceProcess

ROUNDS = 20
RESERVATIONS = 200
RESERVED_TOKENS = 1_000
BUDGET_TOKENS = 100_000
CLAIMS = 100


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]


async def test_200_concurrent_reservations_on_two_processes_get_exactly_the_budget(
    pair: Pair, http: aiohttp.ClientSession, database: str
) -> None:
    for number in range(1, ROUNDS + 1):
        # No reservation is released, so each round raises the budget by the same amount.
        budget = {"daily_tokens": number * BUDGET_TOKENS}
        assert (await send(http, "PUT", pair[0], "budget", budget)).status == 200
        answers = await asyncio.gather(
            *(
                send(
                    http,
                    "POST",
                    pair[index % 2],
                    "budget/reservations",
                    {"agent": f"agent-{index}", "tokens": RESERVED_TOKENS, "ttl_seconds": 3600},
                )
                for index in range(RESERVATIONS)
            )
        )
        statuses = Counter(answer.status for answer in answers)
        assert statuses == {201: BUDGET_TOKENS // RESERVED_TOKENS, 429: RESERVATIONS // 2}
        assert {answer.body["code"] for answer in answers if answer.status == 429} == {"budget_exhausted"}
        last = max(answer.body["position"] for answer in answers)
        for service in pair:
            shown = await send(http, "GET", service, f"budget?min_position={last}")
            assert (shown.body["reserved"], shown.body["remaining"]) == (number * BUDGET_TOKENS, 0)
    await assert_sound(database)


async def test_one_of_100_concurrent_claims_is_granted_and_the_others_conflict_with_it(
    pair: Pair, http: aiohttp.ClientSession, database: str
) -> None:
    for number in range(ROUNDS):
        mail = {"emailId": f"mail-{number}"}
        answers = await asyncio.gather(
            *(
                send(
                    http,
                    "POST",
                    pair[index % 2],
                    "operations",
                    {"agent": f"agent-{index}", "action": "reply", "resources": mail},
                )
                for index in range(CLAIMS)
            )
        )
        granted = [answer.body for answer in answers if answer.status == 201]
        refused = [answer.body for answer in answers if answer.status == 409]
        assert (len(granted), len(refused)) == (1, CLAIMS - 1)
        (operation,) = granted
        assert {body["code"] for body in refused} == {"conflict"}
        assert {body["conflict"]["operation_id"] for body in refused} == {operation["id"]}
        assert {body["conflict"]["position"] for body in refused} == {operation["fencing_token"]}
    await assert_sound(database)


async def test_read_with_min_position_reflects_a_write_to_the_other_process(
    pair: Pair, http: aiohttp.ClientSession
) -> None:
    for number in range(ROUNDS):
        writing, reading = pair[number % 2], pair[(number + 1) % 2]
        text = f"message {number}"
        sent = await send(http, "POST", writing, "messages", {"from_agent": "alice", "message": text})
        position = sent.body["position"]
        # From the tables, from the log, and from the state in memory.
        messages = await send(
            http, "GET", reading, f"messages?min_position={position}&after={position - 1}"
        )
        assert [row["message"] for row in messages.body["items"]] == [text]
        event = await send(http, "GET", reading, f"events/{position}?min_position={position}")
        assert event.body["data"]["message"] == text
        used = await send(http, "POST", writing, "budget/usage", {"agent": "alice", "tokens": 1})
        budget = await send(http, "GET", reading, f"budget?min_position={used.body['position']}")
        assert budget.body["used"] == number + 1


async def test_event_stream_of_one_process_has_every_event_of_both_once_and_in_order(
    pair: Pair, http: aiohttp.ClientSession, database: str
) -> None:
    start = await send(http, "POST", pair[0], "messages", {"from_agent": "alice", "message": "first"})
    first = start.body["position"]
    async with http.get(
        f"{pair[0].url}/api/v1/events/stream", params={"after": first}, timeout=None
    ) as response:
        sent = await asyncio.gather(
            *(
                send(
                    http, "POST", pair[index % 2], "messages", {"from_agent": "bob", "message": str(index)}
                )
                for index in range(RESERVATIONS)
            )
        )
        last = max(answer.body["position"] for answer in sent)
        async with asyncio.timeout(10):
            streamed = [event async for event in events_of(response, last)]
    log = await assert_log_is_sound(database)
    assert [(event["position"], event["id"]) for event in streamed] == [
        (recorded.position, recorded.id) for recorded in log[first:last]
    ]


async def send(
    http: aiohttp.ClientSession,
    method: str,
    service: ServiceProcess,
    path: str,
    body: dict[str, Any] | None = None,
) -> Answer:
    async with http.request(method, f"{service.url}/api/v1/{path}", json=body) as response:
        return Answer(response.status, await response.json(content_type=None))


async def events_of(response: aiohttp.ClientResponse, last: int) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream up to a position; fails if an id is not its event's position."""
    fields: dict[str, str] = {}
    async for line in response.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
            continue
        if "id" in fields:
            event = orjson.loads(fields["data"])
            assert (int(fields["id"]), fields["event"]) == (event["position"], event["type"])
            yield event
            if event["position"] >= last:
                return
        fields = {}


async def assert_sound(dsn: str) -> None:
    await eventually(lambda: projected_to_head(dsn))
    await assert_log_is_sound(dsn)
    assert await assert_tables_equal_fold(dsn) > 0
