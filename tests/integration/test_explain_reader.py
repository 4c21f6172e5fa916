"""Explanations by queries to Postgres equal those from the whole log in a list."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from msgspec import structs

from eventstore.events import (
    BudgetDayReset,
    RunStarted,
    TokensDenied,
    TokensReserved,
    TokensSettled,
    TokensUsed,
)
from service import commands as do
from service.explain import explain
from service.explain.reader import PostgresLogQueries
from service.requests import Request
from tests.support.agents import answers
from tests.support.audit import query_for_what_followed
from tests.support.components import connected, running_writer, submit
from tests.support.jobs import define
from tests.support.list_log_queries import ListLogQueries
from tests.support.log import LogWriter, new_id, whole_log
from tests.support.random_history import RandomHistory
from tests.support.wait import eventually

if TYPE_CHECKING:
    from eventstore.recorded import Recorded
    from tests.support.agents import Agents
    from tests.support.jobs import JobProcess


async def _assert_same_explanations(dsn: str, every: int = 1) -> list[Recorded]:
    async with connected(dsn) as connection:
        log = await whole_log(connection)
        postgres, in_memory = PostgresLogQueries(connection), ListLogQueries(log)
        for position in range(1, len(log) + 1, every):
            assert await explain(postgres, position) == await explain(in_memory, position)
        assert await explain(postgres, len(log) + 1) is None
    return log


async def test_random_history_is_explained_from_postgres_as_from_a_list(database: str) -> None:
    async with running_writer(database, policy=do.SetPolicy(daily_tokens=8_000)) as writer:
        await RandomHistory(seed=7).submit_commands(writer, 400)
        await submit(writer, do.SetBudget(agent_limits={"alice": 10}))
        for agent in ("alice", "bob"):
            refused = await submit(writer, do.ReserveTokens(agent=agent, tokens=20_000))
            assert refused.refusal
    log = await _assert_same_explanations(database)
    kinds = {recorded.type for recorded in log}
    assert kinds >= {"conflict_detected", "tokens_denied", "budget_threshold_crossed", "email_updated"}


async def test_documented_query_finds_everything_that_followed_from_an_event(database: str) -> None:
    async with running_writer(database, policy=do.SetPolicy(daily_tokens=8_000)) as writer:
        await RandomHistory(seed=7).submit_commands(writer, 200)
    async with connected(database) as connection:
        log = await whole_log(connection)
        depths = set()
        for position in range(1, len(log) + 1, 5):
            cursor = await connection.execute(query_for_what_followed(position).encode())
            found = [(row[1], row[0]) for row in await cursor.fetchall()]
            steps = {position: 0}
            for recorded in log:
                if recorded.caused_by in steps:
                    steps[recorded.position] = steps[recorded.caused_by] + 1
            assert found == list(steps.items())[1:]
            depths.add(max(steps.values()))
    assert max(depths) > 2


async def test_tokens_reserved_the_day_before_do_not_count_on_the_next_day(database: str) -> None:
    async with connected(database) as connection:
        log_writer = LogWriter(connection)
        first, second = date(2026, 3, 2), date(2026, 3, 3)
        held = TokensReserved(
            day=first, reservation_id=new_id(), agent="ann", tokens=300, expires_at=_midnight(4)
        )
        ended = structs.asdict(held)
        del ended["tokens"], ended["expires_at"]
        await log_writer.append(
            _day_started(first, 2),
            held,
            _day_started(second, 3),
            TokensSettled(**ended, tokens_reserved=300, tokens_used=200),
            TokensUsed(day=second, agent="bob", tokens=50),
            TokensReserved(
                day=second, reservation_id=new_id(), agent="ann", tokens=7, expires_at=_midnight(4)
            ),
            TokensDenied(day=second, agent="bob", tokens=951, reason="budget_exhausted", remaining=943),
        )
        found = await explain(PostgresLogQueries(connection), log_writer.head.position)
    assert found
    assert (found.facts["used"], found.facts["reserved"]) == (50, 7)
    await _assert_same_explanations(database)


async def test_events_of_a_run_are_traced_back_to_its_tick(
    database: str, agents: Agents, job_process: JobProcess
) -> None:
    agents.on("/poll", answers({"tokens_used": 40}))
    await define(job_process, "poll", every="1s", tokens=100)
    (started,) = await eventually(lambda: job_process.find_events(RunStarted)[:1])
    await job_process.wait_for_run(started.run_id)
    # The agent passes the run's id on with what it writes during the run.
    wrote = do.SendMessage(from_agent="worker", message="three e-mails")
    await job_process.writer.submit(Request(wrote, "agent:worker", agents.calls[0].payload["run_id"]))
    async with connected(database) as connection:
        log = await whole_log(connection)
        of_run = [recorded for recorded in log if recorded.correlation_id == started.run_id]
        assert {"tokens_settled", "run_finished", "message_sent"} <= {item.type for item in of_run}
        claimed = next(recorded for recorded in log if recorded.type == "tokens_reserved")
        for recorded in (claimed, *of_run):
            found = await explain(PostgresLogQueries(connection), recorded.position)
            assert found
            assert found.origin.kind == "run"
            facts = found.origin.facts
            assert (facts["job"], facts["run_id"], facts["tick"]) == ("poll", started.run_id, started.tick)
            assert (facts["attempt"], facts["runner"]) == (1, job_process.scheduler.runner)
        assert found
        assert found.origin.reasons[-1].sentence == "During the run, worker requested this over HTTP."


def _midnight(day: int) -> datetime:
    return datetime(2026, 3, day, tzinfo=UTC)


def _day_started(day: date, number: int) -> BudgetDayReset:
    return BudgetDayReset(
        day=day,
        starts_at=_midnight(number),
        ends_at=_midnight(number + 1),
        total=1_000,
        previous_day=None,
        previous_used=0,
        previous_total=0,
        previous_agents={},
    )
