"""Decisions about creating, updating and completing tasks."""

from __future__ import annotations

from itertools import permutations
from typing import Any, get_args

import pytest

from eventstore.events import TaskCreated, TaskStatus, TaskUpdated
from projections.tasks import TASKS
from service.commands import CreateTask, UpdateTask
from tests.unit.stories import FRESH, START, UNKNOWN_ID, Story, given

ALL_FIELDS: dict[str, Any] = {
    "title": "Answer the quote",
    "description": "By Friday",
    "status": "new",
    "assigned_agent": "ann",
    "priority": "high",
    "deliverable_url": "https://example.org/quote",
}


def a_task(**fields: Any) -> Story:
    return given(CreateTask(**{**ALL_FIELDS, **fields}))


def update(story: Story, **changes: Any) -> UpdateTask:
    return UpdateTask(task_id=story.id, **changes)


class TestCreating:
    def test_created_task_is_on_the_board(self) -> None:
        story = given().when(CreateTask(**ALL_FIELDS))
        story.then(TaskCreated(task_id=FRESH, **ALL_FIELDS))
        story.then_replied(**ALL_FIELDS, created_at=START, updated_at=START)
        row = story.row(TASKS, story.id)
        assert (row.title, row.created_position, row.position) == (
            ALL_FIELDS["title"],
            story.log[-1].position,
            story.log[-1].position,
        )

    def test_title_alone_is_enough(self) -> None:
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

    def test_assigned_agent_is_not_registered(self) -> None:
        """An agent that a task is assigned to has not acted yet."""
        story = given().when(CreateTask(title="Look", assigned_agent="zoe"))
        assert [recorded.type for recorded in story.recorded] == ["task_created"]

    def test_task_created_as_completed_is_not_kept_in_memory(self) -> None:
        story = a_task(status="completed")
        assert story.squad.rows(TASKS).get(story.id) is None


class TestUpdating:
    @pytest.mark.parametrize(("before", "after"), list(permutations(get_args(TaskStatus), 2)))
    def test_any_status_can_follow_any_other(self, before: TaskStatus, after: TaskStatus) -> None:
        story = a_task(status=before)
        task = story.id
        story.when(update(story, status=after), at=5)
        story.then(TaskUpdated(task_id=task, **{**ALL_FIELDS, "status": after}, changed=["status"]))
        story.then_replied(status=after, created_at=START, updated_at=story.now)

    def test_several_fields_can_change_at_once(self) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, priority="low", title="Look"))
        story.then(
            TaskUpdated(
                task_id=task,
                **{**ALL_FIELDS, "priority": "low", "title": "Look"},
                changed=["title", "priority"],
            )
        )

    @pytest.mark.parametrize("field", ["description", "assigned_agent", "deliverable_url"])
    def test_null_clears_a_field(self, field: str) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, **{field: None}))
        story.then(TaskUpdated(task_id=task, **{**ALL_FIELDS, field: None}, changed=[field]))

    def test_other_fields_keep_their_values(self) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, status="in_progress"))
        row = story.row(TASKS, task)
        assert {name: getattr(row, name) for name in ALL_FIELDS} == {**ALL_FIELDS, "status": "in_progress"}

    @pytest.mark.parametrize("changes", [{}, {"title": ALL_FIELDS["title"]}, ALL_FIELDS])
    def test_update_with_the_same_values_changes_nothing(self, changes: dict[str, Any]) -> None:
        story = a_task()
        story.when(update(story, **changes), at=5)
        story.then_nothing().then_replied(updated_at=START, position=story.position_of(TaskCreated))

    def test_update_of_an_unknown_task_is_refused(self) -> None:
        given().when(UpdateTask(task_id=UNKNOWN_ID, title="Look")).then_refused("task_not_found")

    def test_update_names_the_previous_change_as_its_cause(self) -> None:
        story = a_task().given()
        story.when(update(story, title="Look")).when(update(story, title="Look again"))
        assert story.caused_by(TaskUpdated) == story.recorded[0].position - 1


class TestCompleting:
    def test_completed_task_leaves_memory(self) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, status="completed"))
        assert story.squad.rows(TASKS).get(task) is None
        assert f"task-{task}" not in story.squad.versions

    def test_completed_task_is_reopened_from_the_log(self) -> None:
        story = a_task()
        task = story.id
        story.given(update(story, status="completed"), at=5)
        story.when(update(story, status="in_progress"), at=10)
        story.then(TaskUpdated(task_id=task, **{**ALL_FIELDS, "status": "in_progress"}, changed=["status"]))
        story.then_replied(created_at=START)
        row = story.row(TASKS, task)
        assert (row.created_at, row.created_position) == (START, story.position_of(TaskCreated))
        assert story.squad.versions[f"task-{task}"] == 3

    def test_completing_again_changes_nothing_and_loads_nothing_into_memory(self) -> None:
        story = a_task()
        task = story.id
        done = update(story, status="completed")
        story.given(done)
        completed = story.position_of(TaskUpdated)
        story.when(done, at=9).then_nothing().then_replied(position=completed)
        assert story.squad.rows(TASKS).get(task) is None

    def test_task_completed_and_reopened_in_one_batch_stays_in_memory(self) -> None:
        story = a_task()
        task = story.id
        story.when(update(story, status="completed"), update(story, status="new"))
        assert story.row(TASKS, task).status == "new"
        assert story.squad.versions[f"task-{task}"] == 3
