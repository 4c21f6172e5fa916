"""The table of what tokens were spent on: added up by day, agent and model."""

from __future__ import annotations

from collections import Counter
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import given as for_all

from eventstore import codec
from eventstore.events import TokensSettled
from projections.budgets import BUDGET_DAYS, BUDGETS, budgets
from projections.usage import TOKEN_USAGE, UsageRow, usage
from service import commands as do
from tests.support.randomized import examples
from tests.support.verify import fold
from tests.unit import generated_histories
from tests.unit.stories import START, Story, given
from tests.unit.test_codec import recorded as stored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.unit.generated_histories import RandomHistory

TODAY = START.date()
MIDNIGHT = 12 * 3600
SPENT: dict[str, Any] = {"input_tokens": 20, "output_tokens": 5, "model": "small"}


def rows_of(story: Story) -> list[UsageRow]:
    """The rows of the table after a story."""
    return list(fold(usage, story.log)[TOKEN_USAGE.name].values())


class TestRows:
    def test_usage_adds_up_by_day_agent_and_model(self) -> None:
        story = given(
            do.RecordUsage(agent="ann", **SPENT),
            do.RecordUsage(agent="bob", **SPENT),
            do.RecordUsage(agent="ann", tokens=7),
            do.RecordUsage(agent="ann", tokens=3, model="small"),
        )
        last = story.log[-1].position
        story.given(do.RecordUsage(agent="ann", tokens=1, model="small"), at=MIDNIGHT + 1)
        assert rows_of(story) == [
            UsageRow(TODAY, "ann", "small", 28, 20, 5, last),
            UsageRow(TODAY, "bob", "small", 25, 20, 5, last - 2),
            UsageRow(TODAY, "ann", "", 7, 0, 0, last - 1),
            UsageRow(date(2026, 3, 3), "ann", "small", 1, 0, 0, story.log[-1].position),
        ]

    def test_settlement_counts_on_the_day_of_its_reservation(self) -> None:
        story = given(do.ReserveTokens(agent="ann", tokens=40, ttl_seconds=1_000), at=MIDNIGHT - 60)
        story.given(do.SettleReservation(reservation_id=story.id, **SPENT), at=MIDNIGHT + 60)
        assert rows_of(story) == [UsageRow(TODAY, "ann", "small", 25, 20, 5, story.log[-1].position)]

    def test_no_row_is_made_when_nothing_was_used(self) -> None:
        story = given(do.ReserveTokens(agent="ann", tokens=40))
        story.given(
            do.SettleReservation(reservation_id=story.id, tokens_used=0, model="small"),
            do.RecordUsage(agent="ann", tokens=0),
        )
        assert rows_of(story) == []

    def test_settlement_of_an_old_log_counts_without_a_model(self) -> None:
        path = Path(__file__).parent.parent / "golden" / "events" / "tokens_settled.v1.json"
        old = stored(path.read_text(encoding="utf-8"), "tokens_settled", 1)
        event = codec.decode(old)
        assert isinstance(event, TokensSettled)
        assert list(fold(usage, [old])[TOKEN_USAGE.name].values()) == [
            UsageRow(event.day, event.agent, "", event.tokens_used, 0, 0, old.position)
        ]


@for_all(history=generated_histories.every_history)
@examples(60)
def test_usage_by_model_adds_up_to_what_each_agent_and_the_squad_used_on_each_day(
    history: tuple[list[do.AnyCommand], RandomHistory],
) -> None:
    story = generated_histories.story_of(*history)
    rows, totals = rows_of(story), fold(budgets, story.log)
    assert _sums((row.day, row.tokens) for row in rows) == _sums(
        (row.day, row.used) for row in totals[BUDGET_DAYS.name].values()
    )
    assert _sums(((row.day, row.agent), row.tokens) for row in rows) == _sums(
        ((row.day, row.agent), row.used) for row in totals[BUDGETS.name].values()
    )
    assert all(row.input_tokens + row.output_tokens <= row.tokens for row in rows)


def _sums(amounts: Iterable[tuple[Any, int]]) -> Counter[Any]:
    """The sum of the amounts for each key, without those that are 0."""
    sums = Counter[Any]()
    for key, amount in amounts:
        sums[key] += amount
    return +sums
