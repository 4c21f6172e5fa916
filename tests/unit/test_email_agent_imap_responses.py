"""Responses of IMAP servers that the test server does not give."""

from __future__ import annotations

from typing import Any

import pytest

from examples.email_agent import mailbox
from examples.email_agent.mailbox import MailboxError


class ScriptedConnection:
    """A connection with prepared responses."""

    capabilities = ("IMAP4REV1", "X-GM-EXT-1")

    def __init__(self, *responses: Any) -> None:
        self.responses = list(responses)
        self.commands: list[tuple[Any, ...]] = []

    def uid(self, *command: Any) -> Any:
        self.commands.append(command)
        return self.responses.pop(0)

    def list(self) -> Any:
        return self.responses.pop(0)


def fetch(*parts: Any) -> mailbox.Found | None:
    connection: Any = ScriptedConnection(("OK", list(parts)))
    found = mailbox._fetch(connection, 7, 1_000)
    assert "X-GM-MSGID" in connection.commands[0][2]
    return found


def test_external_id_is_the_gmail_message_id() -> None:
    found = fetch((b"3 (X-GM-MSGID 255 UID 7 RFC822.SIZE 9 BODY[]<0> {9}", b"Subject: "), b")")
    assert found
    assert found.external_id == "ff"


def test_attributes_may_follow_the_message() -> None:
    found = fetch(
        b"2 (FLAGS (\\Seen) UID 6)",
        (b"3 (BODY[]<0> {4}", b"a: b"),
        b" UID 7 RFC822.SIZE 5 X-GM-MSGID 10)",
    )
    assert found
    assert (found.uid, found.truncated, found.external_id) == (7, True, "a")


def test_missing_message_is_left_out() -> None:
    assert fetch(None) is None
    assert fetch((b"3 (UID 8 RFC822.SIZE 5 BODY[]<0> {4}", b"a: b"), b")") is None


def test_unreadable_message_is_skipped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    connection: Any = ScriptedConnection(("NO", [b"cannot read it"]))
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
def test_drafts_folder_is_found_by_flag_or_by_name(lines: list[bytes], folder: int) -> None:
    connection: Any = ScriptedConnection(("OK", lines))
    assert mailbox._drafts_folder(connection) == lines[folder].rpartition(b" ")[2].decode()


def test_error_names_the_setting_when_there_is_no_drafts_folder() -> None:
    connection: Any = ScriptedConnection(("OK", [b'() "/" INBOX', None]))
    with pytest.raises(MailboxError, match="EMAIL_AGENT_DRAFTS_MAILBOX"):
        mailbox._drafts_folder(connection)
