"""Reading mail from a real IMAP server and saving drafts there, directly and through the agent's calls."""

from __future__ import annotations

import imaplib
from typing import TYPE_CHECKING, Any

import pytest

from examples.demo import imap_server
from examples.demo.letters import letters
from examples.email_agent import mailbox, message
from examples.email_agent.mailbox import Bookmark, MailboxError, read_new, save_draft
from tests.support import email_agent as support
from tests.support.email_agent import FakeSquad, mailbox_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.demo.imap_server import ImapServer
    from examples.email_agent.settings import Settings


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapServer]:
    with support.mailbox(tmp_path_factory.mktemp("mail")) as server:
        yield server


@pytest.fixture
def server(running_server: ImapServer) -> ImapServer:
    """The server, with an empty mailbox."""
    with imaplib.IMAP4(imap_server.HOST, running_server.port, timeout=5) as imap:
        imap.login(imap_server.USER, imap_server.PASSWORD)
        _, answer = imap.select("INBOX")
        if answer != [b"0"]:
            imap.store("1:*", "+FLAGS", r"(\Deleted)")
            imap.expunge()
    return running_server


@pytest.fixture
def settings(server: ImapServer) -> Settings:
    return mailbox_settings(server)


def letter(subject: str, body: bytes = b"Hello") -> bytes:
    return f"From: a@b.example\r\nSubject: {subject}\r\n\r\n".encode() + body


def deliver(server: ImapServer, *subjects: str) -> None:
    server.deliver([letter(subject) for subject in subjects])


def subjects(page: mailbox.Page) -> list[str]:
    return [found.mail.subject for found in page.messages]


@pytest.fixture
def imap(server: ImapServer) -> Iterator[imaplib.IMAP4]:
    with imaplib.IMAP4(imap_server.HOST, server.port, timeout=5) as imap:
        imap.login(imap_server.USER, imap_server.PASSWORD)
        yield imap


def test_empty_mailbox_gives_no_messages(settings: Settings) -> None:
    page = read_new(settings, None)
    assert page.messages == ()
    assert page.bookmark.last_uid == 0


def test_reading_continues_from_the_bookmark(server: ImapServer, settings: Settings) -> None:
    deliver(server, "one", "two")
    first = read_new(settings, None)
    assert subjects(first) == ["one", "two"]
    assert read_new(settings, first.bookmark).messages == ()
    deliver(server, "three")
    second = read_new(settings, first.bookmark)
    assert subjects(second) == ["three"]
    assert second.bookmark.last_uid > first.bookmark.last_uid


def test_first_read_gives_only_the_newest_messages(server: ImapServer) -> None:
    deliver(server, *"abcdef")
    few = mailbox_settings(server, bootstrap_messages=2)
    assert subjects(read_new(few, None)) == ["e", "f"]
    none = mailbox_settings(server, bootstrap_messages=0)
    page = read_new(none, None)
    assert page.messages == ()
    deliver(server, "g")
    assert subjects(read_new(none, page.bookmark)) == ["g"]


def test_full_mailbox_is_read_page_by_page(server: ImapServer) -> None:
    settings = mailbox_settings(server, poll_messages=2)
    page = read_new(settings, None)
    deliver(server, *"abcde")
    seen = []
    while (page := read_new(settings, page.bookmark)).messages:
        seen.append((subjects(page), page.more))
    assert seen == [(["a", "b"], True), (["c", "d"], True), (["e"], False)]


def test_bookmark_of_another_uid_validity_is_ignored(server: ImapServer, settings: Settings) -> None:
    deliver(server, "one", "two")
    bookmark = read_new(settings, None).bookmark
    other = Bookmark(bookmark.uid_validity + 1, 10_000)
    page = read_new(settings, other)
    assert subjects(page) == ["one", "two"]
    assert page.bookmark == bookmark


def test_reading_does_not_mark_messages_as_seen(
    settings: Settings, server: ImapServer, imap: imaplib.IMAP4
) -> None:
    deliver(server, "one")
    read_new(settings, None)
    imap.select("INBOX", readonly=True)
    status, unseen = imap.uid("SEARCH", "UNSEEN")
    assert status == "OK"
    assert len(unseen[0].split()) == 1


def test_oversized_message_is_truncated(server: ImapServer) -> None:
    server.deliver([letter("huge", b"x" * 3_000_000)])
    (found,) = read_new(mailbox_settings(server, message_bytes=4_096), None).messages
    assert found.truncated
    assert found.mail.subject == "huge"
    assert found.mail.payload(truncated=found.truncated)["truncated"] is True


def test_all_demo_mails_are_read_unchanged(server: ImapServer, settings: Settings) -> None:
    sent = letters()
    server.deliver(sent)
    page = read_new(settings, None)
    assert [found.mail for found in page.messages] == [message.read(raw) for raw in sent]
    assert not any(found.truncated for found in page.messages)


def test_draft_is_saved_once(server: ImapServer, imap: imaplib.IMAP4) -> None:
    settings = mailbox_settings(server, drafts_mailbox="Drafts")
    raw = b"Message-ID: <d@x.invalid>\r\nSubject: Re: Hello\r\n\r\nText"
    assert save_draft(settings, raw, "<d@x.invalid>")
    assert not save_draft(mailbox_settings(server), raw, "<d@x.invalid>")
    imap.select("Drafts", readonly=True)
    _, answer = imap.fetch("1:*", "(FLAGS)")
    (line,) = answer
    assert isinstance(line, bytes)
    assert rb"\Draft" in line


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"imap_password": "wrong"}, "refused"),
        ({"imap_password": "pässword"}, "not ASCII"),
        ({"imap_mailbox": "Nowhere"}, "cannot open the mailbox"),
        ({"imap_port": 1}, "cannot be reached"),
    ],
)
def test_error_gives_the_reason_but_not_the_password(
    server: ImapServer, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MailboxError, match=reason) as error:
        read_new(mailbox_settings(server, **fields), None)
    assert "wrong" not in str(error.value)


def test_saving_a_draft_fails_when_its_folder_does_not_exist(server: ImapServer) -> None:
    with pytest.raises(MailboxError, match="cannot open the drafts"):
        save_draft(mailbox_settings(server, drafts_mailbox="Nowhere"), b"", "<d@x.invalid>")


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("INBOX", '"INBOX"'),
        ("[Gmail]/All Mail", '"[Gmail]/All Mail"'),
        ("Entwürfe", '"Entw&APw-rfe"'),
        ("R&D", '"R&-D"'),
        ('say "x"\\', r'"say \"x\"\\"'),
        ("~peter/mail/台北/日本語", '"~peter/mail/&U,BTFw-/&ZeVnLIqe-"'),
    ],
)
def test_folder_names_are_quoted_in_modified_utf7(name: str, quoted: str) -> None:
    assert mailbox._quoted(name) == quoted


# The agent's calls ----------------------------------------------------------------------------------------


async def test_poll_logs_each_new_mail_once(server: ImapServer) -> None:
    squad = FakeSquad()
    deliver(server, "one", "two")
    mailbox_port: dict[str, Any] = {"imap_port": server.port}
    expected = {"refused": 0, "more": False, "tokens_used": 0}
    async with support.agent(squad, **mailbox_port) as agent:
        first = await agent.post("/api/agents/email/poll", json=support.call())
        assert await first.json() == {"found": 2, "new": 2, "known": 0, **expected}
        second = await agent.post("/api/agents/email/poll", json=support.call())
        assert await second.json() == {"found": 0, "new": 0, "known": 0, **expected}
    async with support.agent(squad, **mailbox_port) as restarted:
        third = await restarted.post("/api/agents/email/poll", json=support.call())
        assert await third.json() == {"found": 2, "new": 0, "known": 2, **expected}
    assert [email["subject"] for email in squad.emails.values()] == ["one", "two"]
    assert all(email["status"] == "unread" for email in squad.emails.values())


async def test_mail_is_logged_later_when_the_orchestrator_was_down(server: ImapServer) -> None:
    squad = FakeSquad()
    deliver(server, "one")
    async with support.agent(squad, imap_port=server.port) as agent:
        squad.broken = True
        refused = await agent.post("/api/agents/email/poll", json=support.call())
        assert refused.status == 503
        squad.broken = False
        answer = await agent.post("/api/agents/email/poll", json=support.call())
        assert (await answer.json())["new"] == 1


async def test_poll_answers_503_when_the_mailbox_is_unreachable() -> None:
    async with support.agent(FakeSquad()) as agent:
        answer = await agent.post("/api/agents/email/poll", json=support.call())
        assert answer.status == 503
        assert "127.0.0.1:1 cannot be reached" in (await answer.json())["error"]


async def test_draft_is_saved_to_the_mailbox_when_configured(server: ImapServer) -> None:
    squad = FakeSquad()
    email_id = squad.add(status="classified", category="order")
    async with support.agent(squad, imap_port=server.port, save_drafts=True) as agent:
        answer = await agent.post("/api/agents/email/respond", json=support.call(email_id))
        assert (await answer.json())["saved_to_mailbox"] is True
    drafts = read_new(mailbox_settings(server, imap_mailbox="Drafts"), None).messages
    assert drafts[-1].mail.message_id == f"<draft-{email_id}@email_agent.invalid>"
    assert drafts[-1].mail.subject == "Re: Quote for two speakers"


async def test_draft_is_logged_even_if_the_mailbox_cannot_save_it() -> None:
    squad = FakeSquad()
    email_id = squad.add(status="classified", category="order")
    async with support.agent(squad, save_drafts=True) as agent:
        answer = await agent.post("/api/agents/email/respond", json=support.call(email_id))
        assert answer.status == 200
        assert (await answer.json())["saved_to_mailbox"] is False
    assert squad.emails[email_id]["status"] == "draft_created"
