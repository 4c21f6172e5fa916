"""The simulation of other rules agrees with the service's own decisions on random histories."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hypothesis import given as for_all
from hypothesis import strategies as st

from eventstore import codec
from projections.budgets import BUDGET_DAYS, BUDGETS, RESERVATIONS
from projections.operations import OPERATIONS
from service.commands import AnyCommand, PassTime, RecordUsage, ReserveTokens, SetPolicy, StartOperation
from service.decide.rules import DEFAULT_WARNING_PERCENTS
from service.history.folding import fold_page
from service.memory.squad import Squad
from service.whatif import OtherRules, Report, Simulation, report
from tests.support.randomized import examples
from tests.unit import generated_histories
from tests.unit.stories import Story

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded

_HISTORY = tuple[list[AnyCommand], generated_histories.RandomHistory]


def simulate(log: Sequence[Recorded], rules: OtherRules, after: int = 0) -> Report:
    simulation = Simulation(rules, after)
    for recorded in log:
        simulation.process(codec.decode(recorded), recorded)
    return simulation.end(len(log))


@for_all(history=generated_histories.every_history, share=st.floats(0, 1))
@examples(75)
def test_empty_rules_make_no_difference(history: _HISTORY, share: float) -> None:
    log = generated_histories.story_of(*history).log
    for after in (0, int(share * len(log))):
        found = simulate(log, OtherRules(), after)
        assert not found.is_different, found
        assert found.caveats() == []


@for_all(
    history=generated_histories.history_of_claims | generated_histories.history_of_usage,
    share=st.floats(0, 1),
)
@examples(50)
def test_rules_that_repeat_the_policy_make_no_difference(history: _HISTORY, share: float) -> None:
    log = generated_histories.story_of(*history).log
    [policy] = [command for command in history[0] if isinstance(command, SetPolicy)]
    same = OtherRules(
        daily_tokens=policy.daily_tokens,
        agent_limits={"nobody": 1},
        conflict_window_seconds=30.0,
        operation_timeout_seconds=60.0,
        warning_percents=DEFAULT_WARNING_PERCENTS,
    )
    for after in (0, int(share * len(log))):
        found = simulate(log, same, after)
        assert not found.is_different, found


@for_all(
    history=generated_histories.every_history,
    share=st.floats(0, 1),
    later=st.floats(0, 1),
    rules=st.builds(
        OtherRules,
        daily_tokens=st.sampled_from((None, 100, 5_000)),
        conflict_window_seconds=st.sampled_from((None, 1.0, 400.0)),
        operation_timeout_seconds=st.sampled_from((None, 2.0, 4_000.0)),
    ),
)
@examples(40)
def test_simulation_from_a_past_squad_equals_one_from_the_first_event(
    history: _HISTORY, share: float, later: float, rules: OtherRules
) -> None:
    log = generated_histories.story_of(*history).log
    start = int(share * len(log))
    after = start + int(later * (len(log) - start))
    squad = Squad()
    if start:
        fold_page(squad, log[:start])
    simulation = Simulation(rules, after, squad)
    for recorded in log[start:]:
        simulation.process(codec.decode(recorded), recorded)
    assert simulation.end(len(log)) == simulate(log, rules, after)


_agents = st.sampled_from(("ann", "bob", "eve"))
_LONGER_THAN_ANY_HISTORY = 100_000.0
_requests: st.SearchStrategy[list[tuple[float, AnyCommand]]] = st.lists(
    st.tuples(
        st.sampled_from((0.0, 0.0, 1.0, 7.0, 20.0, 40.0)),
        st.one_of(
            st.builds(
                ReserveTokens,
                agent=_agents,
                tokens=st.integers(1, 300),
                ttl_seconds=st.just(_LONGER_THAN_ANY_HISTORY),
            ),
            st.builds(RecordUsage, agent=_agents, tokens=st.integers(0, 200)),
            st.builds(
                StartOperation,
                agent=_agents,
                action=st.just("work"),
                resources=st.dictionaries(
                    st.sampled_from(("emailId", "orderId")), st.just("1"), min_size=1
                ),
            ),
        ),
    ),
    min_size=5,
    max_size=40,
)
_policies = st.fixed_dictionaries(
    {
        "daily_tokens": st.sampled_from((200, 500, 1_000)),
        "agent_limits": st.sampled_from(({}, {"ann": 150}, {"ann": 400, "bob": 0})),
        "conflict_window_seconds": st.sampled_from((4.0, 15.0, 30.0)),
        "operation_timeout_seconds": st.sampled_from((10.0, 45.0, 60.0)),
    }
)


def _decide_all(
    requests: list[tuple[float, AnyCommand]], policy: dict[str, Any]
) -> tuple[Story, list[int | None]]:
    """The story of these requests under a policy, and for each the position of its refusal, or None."""
    story = Story().given(SetPolicy(**policy))
    refusals: list[int | None] = []
    for number, (pause_seconds, request) in enumerate(requests):
        # Each operation has its own action, so that none is taken for a heartbeat of another.
        named = {"action": f"work {number}"} if isinstance(request, StartOperation) else {}
        command = request.model_copy(update=named)
        story.when(command, at=story.now + timedelta(seconds=pause_seconds))
        refusals.append(story.outcome.position if story.outcome.refusal else None)
    return story, refusals


def _other_rules(policy: dict[str, Any], other: dict[str, Any]) -> OtherRules:
    limits = dict.fromkeys(policy["agent_limits"]) | other["agent_limits"]
    return OtherRules(**{**other, "agent_limits": limits})


@for_all(requests=_requests, policy=_policies, other=_policies)
@examples(100)
def test_simulation_is_exact_for_requests_that_do_not_depend_on_answers(
    requests: list[tuple[float, AnyCommand]], policy: dict[str, Any], other: dict[str, Any]
) -> None:
    """The simulation equals the service's own decisions on the same requests under the other rules."""
    story, refusals = _decide_all(requests, policy)
    _, other_refusals = _decide_all(requests, other)
    with patch.object(report, "MAX_LISTED_DIFFERENCES", len(requests)):
        found = simulate(story.log, _other_rules(policy, other))
    expected = [
        bool(instead)
        for was, instead in zip(refusals, other_refusals, strict=True)
        if bool(was) != bool(instead)
    ]
    assert [difference.instead == "refused" for difference in found.differences] == expected
    lifted = [difference.position for difference in found.differences if difference.instead == "allowed"]
    assert lifted == [
        was for was, instead in zip(refusals, other_refusals, strict=True) if was and not instead
    ]


@for_all(history=generated_histories.history_of_usage, factor=st.sampled_from((2, 10)))
@examples(40)
def test_first_difference_is_allowed_with_more_tokens_and_refused_with_fewer(
    history: _HISTORY, factor: int
) -> None:
    log = generated_histories.story_of(*history).log
    [policy] = [command for command in history[0] if isinstance(command, SetPolicy)]
    assert policy.daily_tokens
    more = simulate(log, OtherRules(daily_tokens=policy.daily_tokens * factor))
    assert [difference.instead for difference in more.differences[:1]] in ([], ["allowed"])
    fewer = simulate(log, OtherRules(daily_tokens=policy.daily_tokens // factor))
    assert [difference.instead for difference in fewer.differences[:1]] in ([], ["refused"])


@for_all(history=generated_histories.history_of_claims)
@examples(40)
def test_first_difference_is_allowed_with_a_shorter_window_and_refused_with_a_longer(
    history: _HISTORY,
) -> None:
    log = generated_histories.story_of(*history).log
    shorter = simulate(log, OtherRules(conflict_window_seconds=1.0))
    assert [difference.instead for difference in shorter.differences[:1]] in ([], ["allowed"])
    longer = simulate(log, OtherRules(conflict_window_seconds=3_000.0))
    assert [difference.instead for difference in longer.differences[:1]] in ([], ["refused"])


@for_all(
    history=generated_histories.every_history,
    rules=st.builds(
        OtherRules,
        daily_tokens=st.sampled_from((None, 0, 100, 5_000)),
        agent_limits=st.sampled_from((None, {"ann": 10}, {"bob": None})),
        conflict_window_seconds=st.sampled_from((None, 1.0, 400.0)),
        operation_timeout_seconds=st.sampled_from((None, 2.0, 4_000.0)),
        warning_percents=st.sampled_from((None, [], [1], [10, 100])),
    ),
)
@examples(50)
def test_totals_add_up_and_nothing_that_ended_stays_in_memory(history: _HISTORY, rules: OtherRules) -> None:
    story = generated_histories.story_of(*history)
    story.when(PassTime(), at=story.now + timedelta(days=8))
    story.when(PassTime(), at=story.now + timedelta(days=8))
    simulation = Simulation(rules)
    for recorded in story.log:
        simulation.process(codec.decode(recorded), recorded)
    found = simulation.end(len(story.log))
    assert found.refused_instead == sum(row.refused_instead for row in found.rows.values())
    assert found.allowed_instead == sum(row.allowed_instead for row in found.rows.values())
    assert found.tokens_refused == sum(row.tokens_refused for row in found.rows.values())
    assert found.tokens_allowed == sum(row.tokens_allowed for row in found.rows.values())
    assert found.refused_instead + found.allowed_instead <= found.requests
    assert found.runs_refused <= found.refused_instead
    assert found.runs_allowed <= found.allowed_instead
    assert len(found.differences) == min(10, found.refused_instead + found.allowed_instead)
    assert report.shown(found)
    squad = simulation.squad
    assert not list(squad.all(OPERATIONS))
    assert not [row for row in squad.all(RESERVATIONS) if row.expires_at <= story.now]
    assert len([day for day in squad.all(BUDGET_DAYS) if not day.reserved]) == 1
    assert {part.day for part in squad.all(BUDGETS)} <= {day.day for day in squad.all(BUDGET_DAYS)}
