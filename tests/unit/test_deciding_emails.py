from __future__ import annotations

from itertools import permutations
from typing import Any, get_args

import pytest

from eventstore.events import EmailReceived, EmailStatus, EmailUpdated
from projections.emails import EMAILS
from service.commands import LogEmail, UpdateEmail
from tests.unit.support import FRESH, START, UNKNOWN_ID, Story, given

GIVEN: dict[str, Any] = {
    "gmail_message_id": "gmail-1",
    "from_email": "customer@example.org",
    "subject": "A quote, please",
}
MADE_OF_IT: dict[str, Any] = {
    "category": "sales",
    "status": "classified",
    "handled_by": "ann",
    "payload": {"draft": "Dear customer"},
}
FINISHED = ("sent", "archived")


def an_email(**fields: Any) -> Story:
    return given(LogEmail(**{**GIVEN, **MADE_OF_IT, **fields}))


def update(story: Story, **changes: Any) -> UpdateEmail:
    return UpdateEmail(email_id=story.id, **changes)


class TestLogging:
    def test_keeps_what_it_was_told(self) -> None:
        story = given().when(LogEmail(**GIVEN, **MADE_OF_IT))
        story.then(EmailReceived(email_id=FRESH, **GIVEN, **MADE_OF_IT))
        story.replied(**GIVEN, **MADE_OF_IT, created_at=START)

    def test_of_a_new_email_calls_it_unread_and_unclassified(self) -> None:
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

    def test_the_same_gmail_message_again_is_refused_and_names_the_first(self) -> None:
        story = an_email()
        first = story.id
        story.when(LogEmail(**GIVEN), at=5).then_refused("email_exists")
        assert story.refusal.extra == {"email_id": first}

    def test_the_same_gmail_message_twice_in_one_batch_is_refused_the_second_time(self) -> None:
        story = given().when(LogEmail(**GIVEN), LogEmail(**GIVEN))
        assert story.refusal.code == "email_exists"
        assert [recorded.type for recorded in story.recorded] == ["email_received"]

    @pytest.mark.parametrize("status", FINISHED)
    def test_a_gmail_message_that_left_memory_is_still_refused(self, status: str) -> None:
        story = an_email()
        first = story.id
        story.given(update(story, status=status))
        assert story.squad.email_with("gmail-1") is None
        story.when(LogEmail(**GIVEN)).then_refused("email_exists")
        assert story.refusal.extra == {"email_id": first}


class TestUpdating:
    @pytest.mark.parametrize(("before", "after"), list(permutations(get_args(EmailStatus), 2)))
    def test_leads_from_any_status_to_any_other(self, before: EmailStatus, after: EmailStatus) -> None:
        story = an_email(status=before)
        email = story.id
        story.when(update(story, status=after), at=5)
        story.then(EmailUpdated(email_id=email, **{**MADE_OF_IT, "status": after}, changed=["status"]))
        story.replied(**GIVEN, status=after, created_at=START, updated_at=story.now)
        in_memory = story.squad.rows(EMAILS).get(email) is not None
        assert in_memory == (after not in FINISHED)
        assert (story.squad.email_with("gmail-1") == email) == in_memory

    @pytest.mark.parametrize("field", ["handled_by", "payload"])
    def test_clears_what_is_named_as_null(self, field: str) -> None:
        story = an_email()
        email = story.id
        story.when(update(story, **{field: None}))
        story.then(EmailUpdated(email_id=email, **{**MADE_OF_IT, field: None}, changed=[field]))

    @pytest.mark.parametrize("changes", [{}, MADE_OF_IT])
    def test_to_what_it_is_changes_nothing(self, changes: dict[str, Any]) -> None:
        story = an_email()
        story.when(update(story, **changes), at=5)
        story.then_nothing().replied(updated_at=START, position=story.position_of(EmailReceived))

    @pytest.mark.parametrize("different", [True, 1.0, "1", [1], None])
    def test_tells_apart_what_json_tells_apart(self, different: Any) -> None:
        story = an_email(payload={"seen": 1})
        email = story.id
        story.when(update(story, payload={"seen": different}))
        story.then(
            EmailUpdated(
                email_id=email, **{**MADE_OF_IT, "payload": {"seen": different}}, changed=["payload"]
            )
        )

    def test_in_another_order_of_keys_changes_nothing(self) -> None:
        story = an_email(payload={"a": 1, "b": 2})
        story.when(update(story, payload={"b": 2, "a": 1})).then_nothing()

    def test_of_an_unknown_email_is_refused(self) -> None:
        given().when(UpdateEmail(email_id=UNKNOWN_ID, status="sent")).then_refused("email_not_found")
