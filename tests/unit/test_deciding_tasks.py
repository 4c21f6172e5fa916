from __future__ import annotations

from itertools import permutations
from typing import Any, get_args

import pytest

from eventstore.events import TaskCreated, TaskStatus, TaskUpdated
from projections.tasks import TASKS
from service.commands import CreateTask, UpdateTask
from tests.unit.support import FRESH, START, UNKNOWN_ID, Story, given

WHOLE: dict[str, Any] = {
    "title": "Answer the quote",
    "description": "By Friday",
    "status": "new",
    "assigned_agent": "ann",
    "priority": "high",
    "deliverable_url": "https://example.org/quote",
}


def a_task(**fields: Any) -> Story:
    return given(CreateTask(**{**WHOLE, **fields}))


def update(story: Story, **changes: Any) -> UpdateTask:
    return UpdateTask(task_id=story.id, **changes)


class TestCreating:
    def test_puts_a_task_on_the_board(self) -> None:
        story = given().when(CreateTask(**WHOLE))
        story.then(TaskCreated(task_id=FRESH, **WHOLE))
        story.replied(**WHOLE, created_at=START, updated_at=START)
        row = story.row(TASKS, story.id)
        assert (row.title, row.created_position, row.position) == (
            WHOLE["title"],
            story.log[-1].position,
            story.log[-1].position,
        )

    def test_needs_a_title_only(self) -> None:
        given().when(CreateTask(title="Look")).then(
            TaskCreated(
                task_id=FRESH,
                title="Look",
                description=None,
                status="new",
                assigned_agent=None,
                priority="medium",
                deliverable_url=None,
            )
        )

    def test_registers_nobody(self) -> None:
        """Whoever a task is given to has not acted yet."""
        story = given().when(CreateTask(title="Look", assigned_agent="zoe"))
        assert [recorded.type for recorded in story.recorded] == ["task_created"]

    def test_of_a_completed_task_keeps_nothing_in_memory(self) -> None:
        story = a_task(status="completed")
        assert story.squad.rows(TASKS).get(story.id) is None


class TestUpdating:
    @pytest.mark.parametrize(("before", "after"), list(permutations(get_args(TaskStatus), 2)))
    def test_leads_from_any_status_to_any_other(self, before: TaskStatus, after: TaskStatus) -> None:
        story = a_task(status=before)
        task = story.id
        story.when(update(story, status=after), at=5)
        story.then(TaskUpdated(task_id=task, **{**WHOLE, "status": after}, changed=["status"]))
        story.replied(status=after, created_at=START, updated_at=story.now)

    def test_changes_several_fields_at_once(self) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, priority="low", title="Look"))
        story.then(
            TaskUpdated(
                task_id=task,
                **{**WHOLE, "priority": "low", "title": "Look"},
                changed=["title", "priority"],
            )
        )

    @pytest.mark.parametrize("field", ["description", "assigned_agent", "deliverable_url"])
    def test_clears_what_is_named_as_null(self, field: str) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, **{field: None}))
        story.then(TaskUpdated(task_id=task, **{**WHOLE, field: None}, changed=[field]))

    def test_leaves_alone_what_is_not_named(self) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, status="in_progress"))
        row = story.row(TASKS, task)
        assert {name: getattr(row, name) for name in WHOLE} == {**WHOLE, "status": "in_progress"}

    @pytest.mark.parametrize("changes", [{}, {"title": WHOLE["title"]}, WHOLE])
    def test_to_what_it_is_changes_nothing(self, changes: dict[str, Any]) -> None:
        story = a_task()
        story.when(update(story, **changes), at=5)
        story.then_nothing().replied(updated_at=START, position=story.position_of(TaskCreated))

    def test_of_an_unknown_task_is_refused(self) -> None:
        given().when(UpdateTask(task_id=UNKNOWN_ID, title="Look")).then_refused("task_not_found")

    def test_names_the_last_change_as_its_cause(self) -> None:
        story = a_task().given()
        story.when(update(story, title="Look")).when(update(story, title="Look again"))
        assert story.caused_by(TaskUpdated) == story.recorded[0].position - 1


class TestCompleting:
    def test_lets_the_task_leave_memory(self) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, status="completed"))
        assert story.squad.rows(TASKS).get(task) is None
        assert f"task-{task}" not in story.squad.versions

    def test_is_undone_by_what_the_log_remembers(self) -> None:
        story = a_task()
        task = story.id
        story.given(update(story, status="completed"), at=5)
        story.when(update(story, status="in_progress"), at=10)
        story.then(TaskUpdated(task_id=task, **{**WHOLE, "status": "in_progress"}, changed=["status"]))
        story.replied(created_at=START)
        row = story.row(TASKS, task)
        assert (row.created_at, row.created_position) == (START, story.position_of(TaskCreated))
        assert story.squad.versions[f"task-{task}"] == 3

    def test_again_changes_nothing_and_stays_out_of_memory(self) -> None:
        story = a_task()
        task = story.id
        done = update(story, status="completed")
        story.given(done)
        completed = story.position_of(TaskUpdated)
        story.when(done, at=9).then_nothing().replied(position=completed)
        assert story.squad.rows(TASKS).get(task) is None

    def test_and_reopening_in_one_batch_keeps_the_task_in_memory(self) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, status="completed"), update(story, status="new"))
        assert story.row(TASKS, task).status == "new"
        assert story.squad.versions[f"task-{task}"] == 3
