"""Answers of IMAP servers that no server at hand gives."""

from __future__ import annotations

from typing import Any

import pytest

from examples.email_agent import mailbox
from examples.email_agent.mailbox import MailboxError


class Scripted:
    """A connection that gives prepared answers."""

    capabilities = ("IMAP4REV1", "X-GM-EXT-1")

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Any, ...]] = []

    def uid(self, *command: Any) -> Any:
        self.asked.append(command)
        return self.answers.pop(0)

    def list(self) -> Any:
        return self.answers.pop(0)


def fetch(*parts: Any) -> mailbox.Found | None:
    connection: Any = Scripted(("OK", list(parts)))
    found = mailbox._fetch(connection, 7, 1_000)
    assert "X-GM-MSGID" in connection.asked[0][2]
    return found


def test_gmails_number_is_the_id() -> None:
    found = fetch((b"3 (X-GM-MSGID 255 UID 7 RFC822.SIZE 9 BODY[]<0> {9}", b"Subject: "), b")")
    assert found
    assert found.external_id == "ff"


def test_facts_may_stand_behind_the_message() -> None:
    found = fetch(
        b"2 (FLAGS (\\Seen) UID 6)",
        (b"3 (BODY[]<0> {4}", b"a: b"),
        b" UID 7 RFC822.SIZE 5 X-GM-MSGID 10)",
    )
    assert found
    assert (found.uid, found.truncated, found.external_id) == (7, True, "a")


def test_a_message_that_is_gone() -> None:
    assert fetch(None) is None
    assert fetch((b"3 (UID 8 RFC822.SIZE 5 BODY[]<0> {4}", b"a: b"), b")") is None


def test_a_damaged_message_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    connection: Any = Scripted(("NO", [b"cannot read it"]))
    assert mailbox._fetch(connection, 7, 1_000) is None
    assert "skipping message 7: the server says cannot read it" in caplog.text


@pytest.mark.parametrize(
    ("lines", "folder"),
    [
        ([b'(\\HasNoChildren) "/" "INBOX"', b'(\\HasNoChildren \\Drafts) "/" "[Gmail]/Entw&APw-rfe"'], 1),
        ([b'(\\HasNoChildren) "." INBOX', b'(\\HasNoChildren) "." INBOX.Drafts'], 1),
        ([b'() "/" Drafts', b'(\\Drafts) NIL "Kladde"'], 1),
    ],
)
def test_the_folder_for_drafts(lines: list[bytes], folder: int) -> None:
    connection: Any = Scripted(("OK", lines))
    assert mailbox._drafts_folder(connection) == lines[folder].rpartition(b" ")[2].decode()


def test_no_folder_for_drafts() -> None:
    connection: Any = Scripted(("OK", [b'() "/" INBOX', None]))
    with pytest.raises(MailboxError, match="EMAIL_AGENT_DRAFTS_MAILBOX"):
        mailbox._drafts_folder(connection)
