"""Decisions about logging and updating e-mails."""

from __future__ import annotations

from itertools import permutations
from typing import Any, get_args

import pytest

from eventstore.events import EmailReceived, EmailStatus, EmailUpdated
from projections.emails import EMAILS
from service.commands import LogEmail, UpdateEmail
from tests.unit.stories import FRESH, START, UNKNOWN_ID, Story, given

CONTENT: dict[str, Any] = {
    "gmail_message_id": "gmail-1",
    "from_email": "customer@example.org",
    "subject": "A quote, please",
}
HANDLING: dict[str, Any] = {
    "category": "sales",
    "status": "classified",
    "handled_by": "ann",
    "payload": {"draft": "Dear customer"},
}
FINAL_STATUSES = ("sent", "archived")


def an_email(**fields: Any) -> Story:
    return given(LogEmail(**{**CONTENT, **HANDLING, **fields}))


def update(story: Story, **changes: Any) -> UpdateEmail:
    return UpdateEmail(email_id=story.id, **changes)


class TestLogging:
    def test_logged_email_is_recorded_with_all_its_fields(self) -> None:
        story = given().when(LogEmail(**CONTENT, **HANDLING))
        story.then(EmailReceived(email_id=FRESH, **CONTENT, **HANDLING))
        story.then_replied(**CONTENT, **HANDLING, created_at=START)

    def test_email_is_unread_and_unclassified_by_default(self) -> None:
        story = given().when(LogEmail(gmail_message_id="gmail-1", from_email="customer@example.org"))
        story.then(
            EmailReceived(
                email_id=FRESH,
                gmail_message_id="gmail-1",
                from_email="customer@example.org",
                subject=None,
                category="unclassified",
                status="unread",
                handled_by=None,
                payload=None,
            )
        )

    def test_known_gmail_message_is_refused_with_the_id_of_the_first(self) -> None:
        story = an_email()
        first = story.id
        story.when(LogEmail(**CONTENT), at=5).then_refused("email_exists")
        assert story.refusal.extra == {"email_id": first}

    def test_duplicate_gmail_message_in_one_batch_is_refused(self) -> None:
        story = given().when(LogEmail(**CONTENT), LogEmail(**CONTENT))
        assert story.refusal.code == "email_exists"
        assert [recorded.type for recorded in story.recorded] == ["email_received"]

    @pytest.mark.parametrize("status", FINAL_STATUSES)
    def test_known_gmail_message_is_refused_even_after_it_left_memory(self, status: str) -> None:
        story = an_email()
        first = story.id
        story.given(update(story, status=status))
        assert story.squad.email_with("gmail-1") is None
        story.when(LogEmail(**CONTENT)).then_refused("email_exists")
        assert story.refusal.extra == {"email_id": first}


class TestUpdating:
    @pytest.mark.parametrize(("before", "after"), list(permutations(get_args(EmailStatus), 2)))
    def test_any_status_can_follow_any_other(self, before: EmailStatus, after: EmailStatus) -> None:
        story = an_email(status=before)
        email = story.id
        story.when(update(story, status=after), at=5)
        story.then(EmailUpdated(email_id=email, **{**HANDLING, "status": after}, changed=["status"]))
        story.then_replied(**CONTENT, status=after, created_at=START, updated_at=story.now)
        in_memory = story.squad.rows(EMAILS).get(email) is not None
        assert in_memory == (after not in FINAL_STATUSES)
        assert (story.squad.email_with("gmail-1") == email) == in_memory

    @pytest.mark.parametrize("field", ["handled_by", "payload"])
    def test_null_clears_a_field(self, field: str) -> None:
        story = an_email()
        email = story.id
        story.when(update(story, **{field: None}))
        story.then(EmailUpdated(email_id=email, **{**HANDLING, field: None}, changed=[field]))

    @pytest.mark.parametrize("changes", [{}, HANDLING])
    def test_update_with_the_same_values_changes_nothing(self, changes: dict[str, Any]) -> None:
        story = an_email()
        story.when(update(story, **changes), at=5)
        story.then_nothing().then_replied(updated_at=START, position=story.position_of(EmailReceived))

    @pytest.mark.parametrize("different", [True, 1.0, "1", [1], None])
    def test_payloads_that_differ_only_in_json_type_are_different(self, different: Any) -> None:
        story = an_email(payload={"seen": 1})
        email = story.id
        story.when(update(story, payload={"seen": different}))
        story.then(
            EmailUpdated(
                email_id=email, **{**HANDLING, "payload": {"seen": different}}, changed=["payload"]
            )
        )

    def test_payload_with_its_keys_in_another_order_changes_nothing(self) -> None:
        story = an_email(payload={"a": 1, "b": 2})
        story.when(update(story, payload={"b": 2, "a": 1})).then_nothing()

    def test_update_of_an_unknown_email_is_refused(self) -> None:
        given().when(UpdateEmail(email_id=UNKNOWN_ID, status="sent")).then_refused("email_not_found")
