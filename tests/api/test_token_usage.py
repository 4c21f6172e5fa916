"""The list of what tokens were spent on."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from service import commands as do
from tests.api.client import running_service
from tests.support.agents import answers
from tests.support.components import connected
from tests.support.outage import record_before_outage
from tests.support.verify import assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api
    from tests.support.agents import Agents

DAY = timedelta(days=1)
AGO = 4 * DAY
SPENT = {"input_tokens": 30, "output_tokens": 12}

Entry = tuple[str, str | None, int, int, int]
"""Of an entry: its agent, model, tokens, input and output tokens."""


def shown(items: list[dict[str, Any]]) -> list[Entry]:
    return [
        (item["agent"], item["model"], item["tokens"], item["input_tokens"], item["output_tokens"])
        for item in items
    ]


async def _list(api: Api, **query: object) -> list[dict[str, Any]]:
    answer = (await api.get("budget/usage", **query)).expect(200)
    assert answer["next"] is None
    return list(answer["items"])


async def _spend(api: Api) -> None:
    """Spend tokens in every way that an agent can report."""
    await api.post("budget/usage", agent="bob", tokens=5)
    await api.post("budget/usage", agent="ada", model="small", **SPENT)
    held = (await api.post("budget/reservations", agent="ada", tokens=100)).expect(201)
    settled = await api.post(f"budget/reservations/{held['id']}/settle", model="large", **SPENT)
    assert settled.expect(200)["tokens_used"] == 42
    claim = await api.post("operations", agent="ada", action="respond", resources={"emailId": "e"})
    path = f"operations/{claim.expect(201)['id']}/finish"
    done = await api.post(path, outcome="succeeded", tokens_used=50, model="small", **SPENT)
    done.expect(422, "validation_failed")
    done = await api.post(path, outcome="succeeded", tokens_used=42, model="small", **SPENT)
    assert done.expect(200)["tokens_used"] == 42


async def test_usage_is_listed_by_agent_and_model(api: Api) -> None:
    await _spend(api)
    items = await _list(api)
    assert {item["day"] for item in items} == {(await api.get("budget")).expect(200)["period"]}
    assert shown(items) == [
        ("ada", "large", 42, 30, 12),
        ("ada", "small", 84, 60, 24),
        ("bob", None, 5, 0, 0),
    ]
    assert shown(await _list(api, agent="bob")) == [("bob", None, 5, 0, 0)]
    assert shown(await _list(api, model="small")) == [("ada", "small", 84, 60, 24)]
    assert shown(await _list(api, model="")) == [("bob", None, 5, 0, 0)]
    assert await _list(api, agent="eve") == []


async def test_run_is_listed_with_what_its_agent_answered(database: str, agents: Agents) -> None:
    agents.on("/work", answers({"usage": SPENT, "model": "small"}))
    worker = {"worker": {"role": "test"}}
    async with running_service(database, agents_url=agents.url, agents=worker) as service:
        api = service.api
        await api.put("jobs/work", agent="worker", endpoint="/work", every="300d", tokens=100)
        await api.post("jobs/work/run")

        async def listed() -> list[dict[str, Any]]:
            return await _list(api)

        assert shown(await eventually(listed)) == [("worker", "small", 42, 30, 12)]


async def test_usage_of_several_days_is_listed_page_by_page_and_adds_up_to_each_day(database: str) -> None:
    since = await record_before_outage(
        database,
        do.SetPolicy(daily_tokens=1_000),
        do.RecordUsage(agent="bob", tokens=20, model='a "model" / ü'),
        do.RecordUsage(agent="ada", tokens=300),
        do.RecordUsage(agent="ada", tokens=1, model="small"),
        away=AGO,
    )
    first = since.date()
    async with running_service(database, reset_hour=0) as service:
        api = service.api

        async def is_new_day() -> bool:
            return bool((await api.get("budget")).expect(200)["used"] == 0)

        await eventually(is_new_day)
        await _spend(api)
        whole = await _list(api)
        order = [(item["day"], item["agent"], item["model"] or "") for item in whole]
        assert order == sorted(order)
        assert [item["day"] == str(first) for item in whole] == [True] * 3 + [False] * 3
        for limit in (1, 2, 6):
            assert await _pages(api, limit) == whole
        days = (await api.get("budget/days", limit=366)).expect(200)["items"]
        used = Counter[str]()
        for item in whole:
            used[item["day"]] += item["tokens"]
        assert used == +Counter({day["day"]: day["used"] for day in days})
        assert await _list(api, since=first + DAY) == whole[3:]
        assert await _list(api, until=first + DAY) == whole[:3]
        assert await _list(api, since=first + DAY, until=first + DAY) == []


async def _pages(api: Api, limit: int) -> list[dict[str, Any]]:
    answer = (await api.get("budget/usage", limit=limit)).expect(200)
    items = list(answer["items"])
    while answer["next"] is not None:
        assert len(answer["items"]) == limit
        answer = (await api.get("budget/usage", limit=limit, after=answer["next"])).expect(200)
        items += answer["items"]
    return items


INVALID_CURSORS = (
    *("", "x", "7", "[]", "ü", "bm90IEpTT04="),
    *(
        urlsafe_b64encode(text).decode()
        for text in (
            *(b"7", b"[]", b'["2026-11-28","ada"]', b'["2026-11-28","ada",7]', b'["yesterday","ada",""]'),
            rb'["2026-11-28","a\u0000da",""]',
        )
    ),
)


async def test_parameters_are_refused_when_they_are_not_valid(api: Api) -> None:
    wrong: list[dict[str, Any]] = [{"after": cursor} for cursor in INVALID_CURSORS]
    wrong += [{"since": "yesterday"}, {"limit": 1_001}, {"agent": ""}, {"model": "x" * 101}]
    for query in wrong:
        refused = (await api.get("budget/usage", **query)).expect(422, "validation_failed")
        assert [error["field"] for error in refused["errors"]] == [*query], query


async def test_table_is_filled_from_the_log_when_the_schema_is_upgraded(database: str) -> None:
    async with running_service(database) as service:
        await _spend(service.api)
        before = await _list(service.api)
        await eventually(partial(projected_to_head, database))
    async with connected(database) as connection:
        await connection.execute("DROP TABLE token_usage")
        await connection.execute("DELETE FROM projections WHERE name = 'usage'")
        await connection.execute("UPDATE schema_info SET version = 6")
    async with running_service(database) as service:
        head = await service.head()
        assert await _list(service.api, min_position=head) == before
        await eventually(partial(projected_to_head, database))
    assert await assert_tables_equal_fold(database) > 0
