"""A fold of the log, from any snapshot and in pages of any size, gives a squad's past state."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import given as for_all
from hypothesis import strategies as st

from eventstore import codec
from service import commands as do
from service.commands import AnyCommand, RegisterAgent, SetPolicy, StartOrchestrator
from service.history.folding import fold_page, load_absent
from service.history.snapshots import pack, unpack
from service.memory.draft import Draft
from service.memory.squad import Squad
from tests.support.randomized import examples
from tests.support.squads import contents
from tests.unit import strategies
from tests.unit.stories import Story, given
from tests.unit.test_random_histories import SHORT, SHORT_AND_LONG, CheckedStory, History, Step, histories

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded


def fold_onto(squad: Squad, log: Sequence[Recorded], upto: int, page_events: int) -> Squad:
    """Does what `service.history.folding.fold_to` does, on a log that is a list."""
    while squad.head.position < upto:
        start = squad.head.position
        fold_page(squad, log[start : min(start + page_events, upto)])
    load_absent(squad, [recorded for recorded in log if recorded.stream in squad.absent])
    return squad


def round_trip(squad: Squad) -> Squad:
    async def work() -> Squad:
        return await unpack(await pack(squad), squad.head)

    return asyncio.run(work())


def fold_at_once(log: Sequence[Recorded], upto: int) -> Squad:
    """The simplest fold: one page, so nothing leaves memory before the end."""
    squad = Squad()
    fold_page(squad, log[:upto])
    return squad


def check_past_states(
    history: History, first: Sequence[AnyCommand], page_events: int, data: st.DataObject
) -> None:
    """Execute a history, then reconstruct the state after each of its batches."""
    checked = CheckedStory()
    states: dict[int, dict[str, Any]] = {}
    for pause_seconds, batch in [(0.0, [Step(command, None, fails=False) for command in first]), *history]:
        checked.advance(pause_seconds, batch)
        squad = checked.story.squad
        states[squad.head.position] = contents(squad.copy())
    log = checked.story.log
    for position, expected in states.items():
        from_zero = fold_onto(Squad(), log, position, page_events)
        assert contents(from_zero) == expected
        start = data.draw(st.integers(1, position))
        stored = round_trip(fold_onto(Squad(), log, start, page_events))
        assert contents(fold_onto(stored, log, position, page_events)) == expected
    for position in data.draw(st.lists(st.integers(1, len(log)), max_size=10)):
        mid_batch = fold_onto(Squad(), log, position, page_events)
        assert contents(mid_batch) == contents(fold_at_once(log, position))


@examples(30)
@for_all(
    history=histories(strategies.commands, SHORT_AND_LONG),
    policy=strategies.first_policies,
    page_events=st.integers(1, 40),
    data=st.data(),
)
def test_past_states_are_reconstructed_after_random_commands(
    history: History, policy: SetPolicy, page_events: int, data: st.DataObject
) -> None:
    check_past_states(history, [policy, StartOrchestrator()], page_events, data)


@examples(20)
@for_all(
    history=histories(strategies.jobs, SHORT, min_batches=10),
    first_jobs=strategies.first_jobs,
    page_events=st.integers(1, 40),
    data=st.data(),
)
def test_past_states_are_reconstructed_after_random_job_commands(
    history: History, first_jobs: list[AnyCommand], page_events: int, data: st.DataObject
) -> None:
    agents = [RegisterAgent(name=name, role="agent") for name in strategies.AGENTS]
    check_past_states(history, [SetPolicy(), StartOrchestrator(), *agents, *first_jobs], page_events, data)


@examples(20)
@for_all(
    history=histories(strategies.board, (0.0, 1.0, 700.0)),
    page_events=st.integers(1, 8),
    data=st.data(),
)
def test_past_states_are_reconstructed_after_random_reopening(
    history: History, page_events: int, data: st.DataObject
) -> None:
    check_past_states(history, [SetPolicy()], page_events, data)


# Open, but not in memory --------------------------------------------------------------------------------


def _reopened() -> Story:
    """A task and an e-mail that were completed and then reopened, by a process that recalled them."""
    story = given(
        do.CreateTask(title="look", status="completed"),
        do.LogEmail(gmail_message_id="g-1", from_email="a@example.org", status="sent"),
    )
    [task] = [event.stream.removeprefix("task-") for event in story.log if event.type == "task_created"]
    [email] = [event.stream.removeprefix("email-") for event in story.log if event.type == "email_received"]
    return story.given(
        do.UpdateTask(task_id=task, status="new"), do.UpdateEmail(email_id=email, status="unread")
    )


def test_other_process_knows_which_reopened_streams_are_absent_and_can_load_them() -> None:
    story = _reopened()
    other = Squad()
    for recorded in story.log:
        fold_page(other, [recorded])
    assert {stream.partition("-")[0] for stream in other.absent} == {"task", "email"}
    assert not other.tables["squad_tasks"]
    load_absent(other, [recorded for recorded in story.log if recorded.stream in other.absent])
    assert contents(other) == contents(story.squad)
    assert other.email_with("g-1")


def test_stream_that_is_completed_again_is_no_longer_absent() -> None:
    story = _reopened()
    [task] = story.squad.tables["squad_tasks"]
    [email] = story.squad.tables["email_logs"]
    story.given(
        do.UpdateTask(task_id=task, title="another"),
        do.UpdateTask(task_id=task, status="completed"),
        do.UpdateEmail(email_id=email, status="archived"),
    )
    other = Squad()
    for recorded in story.log:
        fold_page(other, [recorded])
    assert contents(other) == contents(story.squad)
    assert not other.absent


def test_stream_that_was_recalled_for_a_command_is_no_longer_absent() -> None:
    story = _reopened()
    other = Story()
    for recorded in story.log:
        fold_page(other.squad, [recorded])
    other.log = list(story.log)
    assert len(other.squad.absent) == 2
    [task] = story.squad.tables["squad_tasks"]
    other.when(do.UpdateTask(task_id=task, title="another"))
    assert {stream.partition("-")[0] for stream in other.squad.absent} == {"email"}
    assert other.squad.tables["squad_tasks"][task].title == "another"


def test_draft_that_is_rolled_back_leaves_no_stream_absent() -> None:
    story = _reopened()
    updated = next(recorded for recorded in story.log if recorded.type == "task_updated")
    other = Squad()
    for recorded in story.log[: updated.position - 1]:
        fold_page(other, [recorded])
    draft = Draft(other)
    draft.set_savepoint()
    draft.fold(codec.decode(updated), updated)
    assert draft.absent.changes
    draft.roll_back()
    other.merge(draft)
    assert not other.absent
