"""What is read of a log in Postgres explains as much as the whole log in a list does."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from eventstore.events import BudgetDayReset, TokensDenied, TokensReserved, TokensSettled, TokensUsed
from service import commands as do
from service.explain import explain
from service.explain.reader import LoggedPast
from tests.support.life import Life
from tests.support.log import Scribe, new_id, whole_log
from tests.support.parts import connected, running_writer, submit
from tests.support.past import ListedPast

if TYPE_CHECKING:
    from eventstore.recorded import Recorded


async def _assert_explained_alike(dsn: str, every: int = 1) -> list[Recorded]:
    async with connected(dsn) as connection:
        log = await whole_log(connection)
        logged, listed = LoggedPast(connection), ListedPast(log)
        for position in range(1, len(log) + 1, every):
            assert await explain(logged, position) == await explain(listed, position)
        assert await explain(logged, len(log) + 1) is None
    return log


async def test_a_life_is_explained_from_the_log_as_from_a_list(database: str) -> None:
    async with running_writer(database, policy=do.SetPolicy(daily_tokens=8_000)) as writer:
        await Life(seed=7).live(writer, 400)
        await submit(writer, do.SetBudget(agent_limits={"alice": 10}))
        for agent in ("alice", "bob"):
            refused = await submit(writer, do.ReserveTokens(agent=agent, tokens=20_000))
            assert refused.refusal
    log = await _assert_explained_alike(database)
    kinds = {recorded.type for recorded in log}
    assert kinds >= {"conflict_detected", "tokens_denied", "budget_threshold_crossed", "email_updated"}


async def test_what_was_reserved_the_day_before_fills_no_other_day(database: str) -> None:
    async with connected(database) as connection:
        scribe = Scribe(connection)
        first, second = date(2026, 3, 2), date(2026, 3, 3)
        held = TokensReserved(
            day=first, reservation_id=new_id(), agent="ann", tokens=300, expires_at=_midnight(4)
        )
        ended = held.model_dump(exclude={"tokens", "expires_at"})
        await scribe.append(
            _begun(first, 2),
            held,
            _begun(second, 3),
            TokensSettled(**ended, tokens_reserved=300, tokens_used=200),
            TokensUsed(day=second, agent="bob", tokens=50),
            TokensReserved(
                day=second, reservation_id=new_id(), agent="ann", tokens=7, expires_at=_midnight(4)
            ),
            TokensDenied(day=second, agent="bob", tokens=951, reason="budget_exhausted", remaining=943),
        )
        found = await explain(LoggedPast(connection), scribe.head.position)
    assert found
    assert (found.facts["used"], found.facts["reserved"]) == (50, 7)
    await _assert_explained_alike(database)


def _midnight(day: int) -> datetime:
    return datetime(2026, 3, day, tzinfo=UTC)


def _begun(day: date, number: int) -> BudgetDayReset:
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
