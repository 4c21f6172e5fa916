"""Lists from tables with many rows: a page reads few rows, whatever it is filtered by."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from psycopg import sql

from projections import storage
from tests.support.components import connected
from tests.support.verify import projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.connection import Connection
    from projections.projection import Table
    from tests.api.client import Service

ROWS = 20_000
RARE_AFTER = ROWS - 5
MAX_EXTRA_ROWS = 150
"""How many more rows than it shows a page may read; a full scan reads over a hundred times as many."""

# For each table: the column that orders its rows, the one that names the agent, and others: unique
# ones, and ones with two values, of which the second begins after the given number of rows.
_TABLES: dict[str, tuple[str, str, dict[str, tuple[Any, ...]]]] = {
    "operations": ("fencing_token", "agent", {"state": ("finished", "expired", ROWS // 2)}),
    "conflicts": ("position", "agent", {}),
    "squad_tasks": (
        "created_position",
        "assigned_agent",
        {"status": ("completed", "in_progress", RARE_AFTER)},
    ),
    "email_logs": (
        "created_position",
        "handled_by",
        {"status": ("sent", "classified", RARE_AFTER), "gmail_message_id": ()},
    ),
    "job_runs": ("fencing_token", "agent", {"status": ("succeeded", "failed", RARE_AFTER)}),
}


async def _one_of_each(service: Service) -> None:
    api = service.api
    for agent in ("ada", "bob"):
        await api.post("operations", agent=agent, action="respond", resources={"emailId": "e"})
    await api.post("tasks", title="a task")
    await api.post("emails", gmail_message_id="g", from_email="c@example.com")
    await api.put("jobs/job", task="token_monitor", every="300d")
    await api.post("jobs/job/run")
    await eventually(partial(projected_to_head, service.dsn))


async def _add_many_rows(connection: Connection) -> None:
    """Add rows to each table, most of them of one agent; rare values come only at the end."""
    for table, (order, agent, others) in _TABLES.items():
        values = {
            "id": "gen_random_uuid()",
            order: "1000000 + n",
            agent: f"CASE WHEN n > {RARE_AFTER} THEN 'seldom' ELSE 'often' END",
        }
        for column, kinds in others.items():
            values[column] = "n::text"
            if kinds:
                first, second, after = kinds
                values[column] = f"CASE WHEN n > {after} THEN '{second}' ELSE '{first}' END"
        added = ", ".join(f"'{column}', {value}" for column, value in values.items())
        query = (
            f"INSERT INTO {table} SELECT made.* FROM (SELECT one FROM {table} one LIMIT 1) first,"
            f" generate_series(1, {ROWS}) n, jsonb_populate_record(one, jsonb_build_object({added})) made"
        )
        await connection.execute(query.encode())
        await connection.execute(f"ANALYZE {table}".encode())


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were read for each page."""
    counts: list[int] = []
    original = storage.select

    async def select(
        connection: Connection, table: Table[Any, Any], where: sql.Composable, parameters: dict[str, Any]
    ) -> list[Any]:
        query = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM {} {}").format(
            sql.Identifier(table.name), where
        )
        row: Any = await (await connection.execute(query, parameters)).fetchone()
        counts.append(_most_rows(row[0] if isinstance(row[0], list) else orjson.loads(row[0])))
        return await original(connection, table, where, parameters)

    monkeypatch.setattr(storage, "select", select)
    return counts


def _most_rows(found: list[dict[str, Any]]) -> int:
    def of(plan: dict[str, Any]) -> int:
        here = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        return int(max(here * plan["Actual Loops"], *map(of, plan.get("Plans", ())), 0))

    return of(found[0]["Plan"])


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_page_reads_few_more_rows_than_it_shows(
    service: Service, rows_read: list[int], order: str
) -> None:
    await _one_of_each(service)
    async with connected(service.dsn) as connection:
        await _add_many_rows(connection)
    for path, count in (
        ("operations?agent=seldom", 5),
        ("operations?agent=often", 100),
        ("operations?agent=seldom&state=expired", 5),
        ("operations?state=finished", 100),
        ("operations?state=expired", 100),
        ("conflicts?agent=seldom", 5),
        ("conflicts?agent=often", 100),
        ("tasks?limit=100", 100),
        ("tasks?assigned_agent=seldom", 5),
        ("tasks?assigned_agent=seldom&status=new,in_progress", 5),
        ("tasks?status=in_progress", 5),
        ("tasks?status=completed", 100),
        ("emails?handled_by=seldom", 5),
        ("emails?handled_by=often", 100),
        ("emails?handled_by=nobody", 0),
        ("emails?status=classified", 5),
        ("emails?status=sent", 100),
        ("runs?limit=100", 100),
        ("runs?status=succeeded", 100),
        ("runs?status=succeeded,lost", 100),
        ("runs?status=failed", 5),
        ("runs?job=job", 100),
        ("runs?job=job&since=2020-01-31T09:00:00Z", 100),
        ("runs?job=job&until=2020-01-31T09:00:00Z", 0),
    ):
        rows_read.clear()
        shown = (await service.api.get(f"{path}&order={order}")).expect(200)["items"]
        assert len(shown) == count, path
        assert max(rows_read) <= count + MAX_EXTRA_ROWS, path


async def test_page_of_unassigned_tasks_reads_few_more_rows_than_it_shows(
    service: Service, rows_read: list[int]
) -> None:
    await _one_of_each(service)
    async with connected(service.dsn) as connection:
        await _add_many_rows(connection)
        # A scan of the board from its beginning reaches the unassigned tasks last.
        for assigned, queries in (
            (RARE_AFTER, {"": 6, "&status=in_progress": 5, "&status=completed": 0}),
            (ROWS // 2, {"": 100, "&after=1012000": 100, "&status=in_progress": 5, "&status=new": 1}),
        ):
            await connection.execute(
                "UPDATE squad_tasks SET assigned_agent = NULL WHERE created_position > %s",
                (1_000_000 + assigned,),
            )
            await connection.execute("ANALYZE squad_tasks")
            for (query, count), order in product(queries.items(), ("asc", "desc")):
                rows_read.clear()
                page = await service.api.get(f"tasks?order={order}&assigned_agent={query}")
                shown = page.expect(200)["items"]
                if not (order == "desc" and "after" in query):
                    assert len(shown) == count, query
                assert max(rows_read) <= count + MAX_EXTRA_ROWS, query
                assert [item["assigned_agent"] for item in shown] == [None] * len(shown)
                positions = [item["created_position"] for item in shown]
                assert positions == sorted(positions, reverse=order == "desc")
