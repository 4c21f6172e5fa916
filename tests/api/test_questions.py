"""The queries in docs/audit.md that answer usual questions find what they promise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

from tests.api.client import running_service
from tests.support.agents import answers
from tests.support.audit import queries_for_questions
from tests.support.components import connected
from tests.support.keys import make_key
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.api.client import Api
    from tests.support.agents import Agents


async def _answer(dsn: str, begins: str, **values: str) -> list[dict[str, Any]]:
    """The rows of the only query that contains a text, with other values than those in the document."""
    [query] = [query for query in queries_for_questions() if begins in query]
    for value in values.values():
        old, _, new = value.partition(" -> ")
        assert old in query
        query = query.replace(old, new)
    async with connected(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
        return await (await cursor.execute(query.encode())).fetchall()


async def _claim(api: Api, agent: str, email: str) -> dict[str, Any]:
    answer = await api.post("operations", agent=agent, action="respond", resources={"emailId": email})
    return dict(answer.body)


async def _run(api: Api, job: str) -> dict[str, Any]:
    run_id = (await api.post(f"jobs/{job}/run")).expect(202)["id"]

    async def ended() -> dict[str, Any] | None:
        run = (await api.get(f"runs/{run_id}")).expect(200)
        return dict(run) if run["status"] != "running" else None

    return await eventually(ended) or {}


async def test_each_question_of_the_document_is_answered_in_sql(database: str, agents: Agents) -> None:
    agents.on("/report", answers({"tokens_used": 40}), answers({}))
    key = await make_key(database)
    async with running_service(database) as service:
        api = service.api.with_key(key.text)
        (await api.put("agents/email_agent", role="r", url=agents.url)).expect(200)
        first = await _claim(api, "email_agent", "email-123")
        refused = await _claim(api, "quote_agent", "email-123")
        await api.post(f"operations/{first['id']}/finish", outcome="succeeded", tokens_used=120)
        await api.post("budget/usage", agent="email_agent", tokens=10, operation_id=first["id"])
        await _claim(api, "email_agent", "email-124")
        for _ in range(2):
            await _claim(api, "quote_agent", "email-124")
        logged = (await api.post("emails", gmail_message_id="g", from_email="a@b.example")).expect(201)
        (await api.patch(f"emails/{logged['id']}", status="sent", handled_by="email_agent")).expect(200)
        (
            await api.put(
                "jobs/daily_report", agent="email_agent", endpoint="/report", every="300d", tokens=77
            )
        ).expect(200)
        runs = [await _run(api, "daily_report") for _ in range(2)]
        await api.get("runs", min_position=await service.head())
        day = "2026-11-23 -> " + (await api.get("budget")).expect(200)["period"]

        [held] = await _answer(database, "FROM operations WHERE")
        assert (held["agent"], held["outcome"], str(held["id"])) == (
            "email_agent",
            "succeeded",
            first["id"],
        )
        [conflict] = await _answer(database, "FROM conflicts WHERE")
        assert (conflict["position"], conflict["agent"]) == (refused["position"], "quote_agent")
        stream = f"01a2222c-b904-72f5-9392-582f49449fae -> {logged['id']}"
        changes = await _answer(database, "WHERE stream =", stream=stream)
        assert [(row["type"], row["handled_by"]) for row in changes] == [
            ("email_received", None),
            ("email_updated", "email_agent"),
        ]
        written = await _answer(database, "WHERE actor LIKE", key=f"7f3k9q2m4x -> {key.id}")
        assert {"operation_started", "email_updated", "run_started"} <= {row["type"] for row in written}
        # One run reported 40; the other reported nothing, and counts in full.
        [by_job] = await _answer(database, "GROUP BY job_runs.job", day=day)
        assert by_job == {"job": "daily_report", "tokens": 117}
        [by_operation] = await _answer(database, "GROUP BY operations.id ORDER BY tokens", day=day)
        assert (by_operation["agent"], by_operation["tokens"]) == ("email_agent", 130)
        tick = datetime.fromisoformat(runs[0]["tick"]).astimezone(UTC)
        since, until = (f"{tick + timedelta(hours=hours):%Y-%m-%dT%H:%MZ}" for hours in (-1, 1))
        ticks = await _answer(
            database,
            "FROM job_runs JOIN events ON events.position",
            since=f"2026-11-23T09:00Z -> {since}",
            until=f"2026-11-23T09:30Z -> {until}",
        )
        assert [(row["status"], row["position"]) for row in ticks] == [
            ("succeeded", run["fencing_token"]) for run in runs
        ]
        [waiting] = await _answer(database, "AS silent_for")
        assert (waiting["holder"], waiting["refused"], waiting["times"]) == (
            "email_agent",
            "quote_agent",
            2,
        )
        assert waiting["is_blocking"]
    assert len(queries_for_questions()) == 8
