"""Encrypted payloads, and forgetting their subjects: senders of e-mails, and single messages."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from eventstore import chain, sealing
from eventstore.events import ERASED, EmailReceived, EmailUpdated, MessageSent, SubjectForgotten
from eventstore.recorded import GENESIS_HASH
from eventstore.subjects import digest_of, sender
from projections.emails import EMAILS
from service.commands import (
    AnyCommand,
    ForgetSubject,
    LogEmail,
    RegisterAgent,
    SendMessage,
    UpdateEmail,
)
from service.decide import subjects
from service.requests import Answer, Outcome, Request
from tests.unit.stories import FRESH, UNKNOWN_ID, Story, given

ADDRESS = "zoe@example.org"
LETTER = LogEmail(
    gmail_message_id="g-1", from_email=f"Zoë <{ADDRESS}>", subject="Complaint", payload={"text": "so angry"}
)
OTHER_LETTER = LogEmail(gmail_message_id="g-2", from_email="bob@example.org", subject="Praise")
HELLO = SendMessage(from_agent="ann", message="call Zoë", data={"phone": "030-1234"})
PERSONAL = ("Zoë", ADDRESS, "Complaint", "so angry", "030-1234")


def encrypted(*steps: AnyCommand) -> Story:
    return given(RegisterAgent(name="ann", role="agent"), *steps, encrypt=True)


def stored(story: Story) -> str:
    """The log as it is stored."""
    return "\n".join(str(row) for row in story.log)


def readable(story: Story) -> str:
    """All payloads of the log that can still be read."""
    return "\n".join(row.data for row in story.vault.reveal(story.log))


def complete_answer(outcome: Outcome) -> Answer:
    shown = {name: value for name, value in outcome.reply.items() if not name.endswith("_at")}
    return Answer(201, {**shown, "position": outcome.position})


def request(command: AnyCommand, key: str = "k", fingerprint: str = "of the request") -> Request:
    return Request(
        command, "agent:ann", "r", key, fingerprint, complete_answer, bare_fingerprint="of the path"
    )


class TestSealing:
    def test_payloads_are_in_plain_unless_encryption_is_on(self) -> None:
        story = given(LETTER)
        assert sealing.key_of(story.log[-1]) is None
        assert story.recorded == story.revealed

    def test_log_contains_no_personal_data_when_encryption_is_on(self) -> None:
        story = encrypted(HELLO, LETTER)
        story.when(UpdateEmail(email_id=story.id, payload={"text": "so angry, still"}))
        assert not [text for text in PERSONAL if text in stored(story)]
        assert all(text in readable(story) for text in PERSONAL)

    def test_sealed_event_is_read_back_unchanged(self) -> None:
        encrypted().when(LETTER).then(EmailReceived(email_id=FRESH, **LETTER.model_dump()))

    def test_hash_chain_covers_sealed_payloads(self) -> None:
        story = encrypted(LETTER, HELLO)
        assert chain.verify(GENESIS_HASH, story.log) == story.log[-1].hash

    def test_each_sender_has_one_key_and_each_message_its_own(self) -> None:
        again = LETTER.model_copy(update={"gmail_message_id": "g-3", "from_email": ADDRESS.upper()})
        story = encrypted(LETTER, again, OTHER_LETTER, HELLO, HELLO)
        one, two, other, *messages = (
            sealing.key_of(row) for row in story.log if row.type in (EmailReceived.type, MessageSent.type)
        )
        assert one == two != other
        assert len({one, other, *messages}) == 4

    def test_update_without_a_payload_stays_in_plain(self) -> None:
        story = encrypted(OTHER_LETTER)
        story.when(UpdateEmail(email_id=story.id, status="classified"))
        assert sealing.key_of(story.recorded[0]) is None

    def test_known_email_creates_no_key(self) -> None:
        story = given(LETTER)
        story.encrypt = True
        story.when(LETTER.model_copy(update={"from_email": "new@example.org"})).then_refused("email_exists")
        assert story.vault.senders == {}

    def test_update_that_needs_no_key_creates_none(self) -> None:
        story = given(OTHER_LETTER)
        story.encrypt = True
        story.when(UpdateEmail(email_id=story.id, status="classified"))
        assert story.vault.senders == {}


class TestForgettingSender:
    def test_email_is_erased_and_recorded_without_its_sender(self) -> None:
        story = encrypted(OTHER_LETTER, LETTER)
        email_id, key_id = story.id, sealing.key_of(story.log[-1])
        assert key_id
        story.when(ForgetSubject(subject=ADDRESS, in_plain=3), at=9)
        story.then(SubjectForgotten(key_id=key_id, emails=[email_id], messages=[], in_plain=3))
        story.then_replied(emails=1, messages=0, in_plain=3)
        row = story.row(EMAILS, email_id)
        assert (row.from_email, row.subject, row.payload) == (ERASED, None, None)
        assert (row.gmail_message_id, row.category, row.status) == ("g-1", "unclassified", "unread")
        assert (row.position, row.updated_at) == (story.log[-1].position, story.now)
        assert not [text for text in PERSONAL if text in readable(story)]
        assert "Praise" in readable(story)

    @pytest.mark.parametrize("name", [ADDRESS, ADDRESS.upper(), f"Z. <{ADDRESS}>", f" {ADDRESS} "])
    def test_sender_is_found_however_the_address_is_written(self, name: str) -> None:
        encrypted(LETTER).when(ForgetSubject(subject=name)).then_replied(emails=1)

    def test_unknown_sender_is_refused_without_repeating_the_address(self) -> None:
        story = encrypted(LETTER).when(ForgetSubject(subject="nobody@example.org"))
        story.then_refused("subject_not_found")
        assert "nobody@" not in story.refusal.detail

    def test_forgotten_sender_is_unknown(self) -> None:
        story = encrypted(LETTER).given(ForgetSubject(subject=ADDRESS))
        story.when(ForgetSubject(subject=ADDRESS)).then_refused("subject_not_found")

    def test_sender_whose_emails_are_all_in_plain_is_refused_as_such(self) -> None:
        story = given(LETTER).when(ForgetSubject(subject=ADDRESS, in_plain=1))
        story.then_refused("subject_in_plain")
        assert story.refusal.extra == {"in_plain": 1}
        assert ADDRESS not in story.refusal.detail

    def test_forgotten_sender_can_write_again_with_a_new_key(self) -> None:
        story = encrypted(LETTER).given(ForgetSubject(subject=ADDRESS))
        again = LETTER.model_copy(update={"gmail_message_id": "g-9", "subject": "Again"})
        story.when(again)
        first, second = (sealing.key_of(row) for row in story.log if row.type == EmailReceived.type)
        assert first != second
        assert "Again" in readable(story)
        assert "Complaint" not in readable(story)
        story.when(ForgetSubject(subject=ADDRESS)).then_replied(emails=1)

    def test_email_is_erased_even_if_only_its_update_was_sealed(self) -> None:
        story = given(LETTER)
        email_id = story.id
        story.encrypt = True
        story.when(UpdateEmail(email_id=email_id, payload={"draft": "Dear Zoë"}))
        assert sealing.key_of(story.recorded[-1])
        story.when(ForgetSubject(subject=ADDRESS, in_plain=1)).then_replied(emails=1)
        assert story.row(EMAILS, email_id).from_email == ERASED

    def test_many_emails_are_forgotten_in_several_events(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subjects, "MAX_EMAILS", 2)
        letters = [LETTER.model_copy(update={"gmail_message_id": f"g-{n}"}) for n in range(5)]
        story = encrypted(*letters).when(ForgetSubject(subject=ADDRESS)).then_replied(emails=5)
        parts = [event.emails for event in story.events if isinstance(event, SubjectForgotten)]
        assert [len(part) for part in parts] == [2, 2, 1]
        assert {row.from_email for row in story.squad.all(EMAILS)} == {ERASED}

    def test_email_that_left_memory_is_erased(self) -> None:
        story = encrypted(LETTER)
        email_id = story.id
        story.given(UpdateEmail(email_id=email_id, status="archived"), ForgetSubject(subject=ADDRESS))
        story.when(UpdateEmail(email_id=email_id, status="classified"))
        story.then_replied(from_email=ERASED, subject=None, payload=None)

    def test_partly_sealed_email_that_left_memory_is_erased(self) -> None:
        story = given(LETTER)
        email_id = story.id
        story.encrypt = True
        story.given(
            UpdateEmail(email_id=email_id, status="archived", payload={"draft": "Dear Zoë"}),
            ForgetSubject(subject=ADDRESS),
        )
        story.when(UpdateEmail(email_id=email_id, status="archived"))
        story.then_replied(from_email=ERASED, subject=None, position=story.position_of(SubjectForgotten))
        story.when(UpdateEmail(email_id=email_id, status="classified"))
        assert story.row(EMAILS, email_id).from_email == ERASED

    def test_reading_an_erased_email_again_does_not_revert_later_changes(self) -> None:
        other = LETTER.model_copy(update={"gmail_message_id": "g-9"})
        story = encrypted(LETTER, other)
        gone, here = story.squad.gmail_ids["g-1"], story.squad.gmail_ids["g-9"]
        story.given(UpdateEmail(email_id=gone, status="archived"), ForgetSubject(subject=ADDRESS))
        story.given(UpdateEmail(email_id=here, status="classified"))
        before = story.row(EMAILS, here)
        story.given(UpdateEmail(email_id=gone, status="sent"))
        assert story.row(EMAILS, here) == before


class TestErasedEmail:
    def test_erased_email_can_be_updated_but_takes_no_payload(self) -> None:
        story = encrypted(LETTER)
        email_id = story.id
        story.given(ForgetSubject(subject=ADDRESS))
        story.when(UpdateEmail(email_id=email_id, payload={"draft": "Dear Zoë"})).then_refused(
            "email_erased"
        )
        story.when(UpdateEmail(email_id=email_id, status="classified", payload=None))
        story.then(
            EmailUpdated(
                email_id=email_id,
                category="unclassified",
                status="classified",
                handled_by=None,
                payload=None,
                changed=["status"],
            )
        )
        assert sealing.key_of(story.recorded[0]) is None

    def test_email_with_the_sender_of_erased_ones_cannot_be_logged(self) -> None:
        with pytest.raises(ValidationError, match="stands for a sender who was forgotten"):
            LogEmail(gmail_message_id="g", from_email=ERASED)


class TestForgettingMessage:
    def test_only_the_named_message_is_erased(self) -> None:
        story = encrypted(HELLO)
        message_id, key_id = story.id, sealing.key_of(story.log[-1])
        assert key_id
        story.given(SendMessage(from_agent="ann", message="something else"))
        story.when(ForgetSubject(subject=message_id))
        story.then(SubjectForgotten(key_id=key_id, emails=[], messages=[message_id], in_plain=0))
        assert "something else" in readable(story)
        assert "Zoë" not in readable(story)

    def test_forgetting_a_message_again_changes_nothing(self) -> None:
        story = encrypted(HELLO)
        message_id = story.id
        story.given(ForgetSubject(subject=message_id))
        story.when(ForgetSubject(subject=message_id)).then_nothing()
        story.then_replied(messages=1, position=story.position_of(SubjectForgotten))

    def test_message_in_plain_is_refused(self) -> None:
        story = given(HELLO)
        story.when(ForgetSubject(subject=story.id)).then_refused("subject_in_plain")

    def test_unknown_message_is_refused(self) -> None:
        encrypted().when(ForgetSubject(subject=UNKNOWN_ID)).then_refused("subject_not_found")


class TestStoredAnswers:
    def test_answer_is_sealed_with_the_key_of_its_event(self) -> None:
        story = encrypted().when(request(LETTER))
        received, answered = story.recorded
        assert sealing.key_of(received) == sealing.key_of(answered)
        assert "of the request" not in stored(story)

    def test_repeat_gets_the_first_answer(self) -> None:
        story = encrypted().when(request(LETTER))
        first = complete_answer(story.outcome)
        story.when(request(LETTER)).then_nothing()
        assert story.outcome.repeated == first
        story.when(request(LETTER, fingerprint="of another")).then_refused("idempotency_mismatch")

    def test_repeat_gets_an_erased_answer_when_the_sender_is_forgotten(self) -> None:
        story = encrypted().when(request(LETTER))
        first = complete_answer(story.outcome)
        story.given(ForgetSubject(subject=ADDRESS))
        story.when(request(LETTER)).then_nothing()
        body = {**first.body, "from_email": ERASED, "subject": None, "payload": None}
        assert story.outcome.repeated == Answer(201, body)
        # Nothing is left that could confirm a guess of the body.
        story.when(request(LETTER, fingerprint="of another")).then_nothing()
        assert story.outcome.repeated == Answer(201, body)

    def test_repeat_for_a_forgotten_message_gets_the_complete_answer(self) -> None:
        story = encrypted().when(request(HELLO))
        first = complete_answer(story.outcome)
        story.given(ForgetSubject(subject=first.body["id"]))
        story.when(request(HELLO)).then_nothing()
        assert story.outcome.repeated == first

    def test_answer_to_an_update_that_changed_nothing_is_sealed(self) -> None:
        story = encrypted(LETTER)
        story.when(request(UpdateEmail(email_id=story.id, payload=LETTER.payload)))
        assert [row.type for row in story.recorded] == ["request_answered"]
        assert not [text for text in PERSONAL if text in stored(story)]

    def test_erased_answer_is_not_given_to_another_request(self) -> None:
        story = encrypted().when(request(LETTER))
        story.given(ForgetSubject(subject=ADDRESS))
        elsewhere = Request(
            HELLO, "agent:ann", "r", "k", "another", complete_answer, bare_fingerprint="of another path"
        )
        story.when(elsewhere).then_refused("idempotency_mismatch")


class TestForgettingWithIdempotencyKey:
    def test_fingerprint_of_the_path_is_stored_and_not_that_of_the_body(self) -> None:
        story = encrypted(LETTER).when(request(ForgetSubject(subject=ADDRESS)))
        assert "of the request" not in stored(story)
        assert "of the path" in stored(story)

    def test_repeat_gets_the_first_answer(self) -> None:
        story = encrypted(LETTER).when(request(ForgetSubject(subject=ADDRESS)))
        first = complete_answer(story.outcome)
        story.when(request(ForgetSubject(subject=ADDRESS))).then_nothing()
        assert story.outcome.repeated == first

    def test_same_key_for_another_sender_is_refused(self) -> None:
        story = encrypted(LETTER, OTHER_LETTER).when(request(ForgetSubject(subject=ADDRESS)))
        story.when(request(ForgetSubject(subject="bob@example.org"))).then_refused("idempotency_mismatch")
        assert "Praise" in readable(story)


class TestSubjects:
    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("zoe@example.org", "zoe@example.org"),
            ("Zoe@Example.ORG", "zoe@example.org"),
            ('"Zoë <Z>" <zoe@example.org>', "zoe@example.org"),
            ("  zoe@example.org  ", "zoe@example.org"),
            ("Zoë  of  Example", "zoë of example"),
            ("<>", "<>"),
            ("<zoe@example.org> (work)", "<zoe@example.org> (work)"),
        ],
    )
    def test_sender_is_the_bare_address_in_lower_case(self, written: str, meant: str) -> None:
        assert sender(written) == meant

    def test_digests_have_a_fixed_length(self) -> None:
        assert len(digest_of("x" * 1000)) == len(digest_of("x")) == 64
