"""Two writers on one database: what a decision checked still holds when its events are appended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from eventstore import codec
from eventstore.events import ConflictDetected, OperationStarted, TokensDenied, TokensReserved
from service import commands as do
from tests.support.components import running_listener, running_writer, submit
from tests.support.verify import assert_log_is_sound

if TYPE_CHECKING:
    from service.requests import Outcome
    from service.writing.writer import Writer

ROUNDS = 20
RESERVATIONS = 200
CLAIMS = 100
TOKENS = 1_000
BUDGET = 100_000


async def _submit_at_both(writers: tuple[Writer, Writer], commands: list[do.AnyCommand]) -> list[Outcome]:
    """Submit all commands at once, alternately at one writer and the other."""
    return await asyncio.gather(
        *(submit(writers[number % 2], command) for number, command in enumerate(commands))
    )


def _granted(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.refusal is None]


async def test_budget_is_never_overspent_in_a_race(database: str) -> None:
    budget = do.SetPolicy(daily_tokens=BUDGET)
    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events, policy=budget) as one,
        running_writer(database, hints=listener.events, policy=budget) as two,
    ):
        for round_ in range(ROUNDS):
            await submit(one, do.SetBudget(daily_tokens=BUDGET * (round_ + 1)))
            outcomes = await _submit_at_both(
                (one, two),
                [do.ReserveTokens(agent=f"agent-{n % 7}", tokens=TOKENS) for n in range(RESERVATIONS)],
            )
            granted = _granted(outcomes)
            assert len(granted) == BUDGET // TOKENS
            assert sorted(outcome.reply["remaining"] for outcome in granted) == [
                left * TOKENS for left in range(BUDGET // TOKENS)
            ]
            refusals = [outcome.refusal for outcome in outcomes if outcome.refusal]
            assert {refusal.code for refusal in refusals} == {"budget_exhausted"}
        assert one.squad.day is not None
        assert one.squad.day.reserved == BUDGET * ROUNDS
    events = [codec.decode(event) for event in await assert_log_is_sound(database)]
    assert sum(isinstance(event, TokensReserved) for event in events) == ROUNDS * BUDGET // TOKENS
    assert sum(isinstance(event, TokensDenied) for event in events) == ROUNDS * (
        RESERVATIONS - BUDGET // TOKENS
    )


async def test_resource_is_never_claimed_twice_in_a_race(database: str) -> None:
    async with (
        running_listener(database) as listener,
        running_writer(database, hints=listener.events) as one,
        running_writer(database, hints=listener.events) as two,
    ):
        for round_ in range(ROUNDS):
            resources = {"emailId": f"email-{round_}"}
            outcomes = await _submit_at_both(
                (one, two),
                [
                    do.StartOperation(agent=f"agent-{n}", action="reply", resources=resources)
                    for n in range(CLAIMS)
                ],
            )
            (granted,) = _granted(outcomes)
            refusals = [outcome.refusal for outcome in outcomes if outcome.refusal]
            assert len(refusals) == CLAIMS - 1
            for refusal in refusals:
                assert refusal.code == "conflict"
                assert refusal.extra["conflict"]["operation_id"] == granted.reply["id"]
                assert (
                    refusal.extra["conflict"]["position"]
                    == granted.reply["fencing_token"]
                    == granted.position
                )
    events = [codec.decode(event) for event in await assert_log_is_sound(database)]
    assert sum(isinstance(event, OperationStarted) for event in events) == ROUNDS
    assert sum(isinstance(event, ConflictDetected) for event in events) == ROUNDS * (CLAIMS - 1)
