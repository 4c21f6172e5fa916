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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapServer]:
    with support.mailbox(tmp_path_factory.mktemp("mail")) as office:
        yield office


@pytest.fixture
def office(server: ImapServer) -> ImapServer:
    """The server, with nothing in its mailbox."""
    with imaplib.IMAP4(imap_server.HOST, server.port, timeout=5) as imap:
        imap.login(imap_server.USER, imap_server.PASSWORD)
        _, answer = imap.select("INBOX")
        if answer != [b"0"]:
            imap.store("1:*", "+FLAGS", r"(\Deleted)")
            imap.expunge()
    return server


@pytest.fixture
def settings(office: ImapServer) -> Settings:
    return mailbox_settings(office)


def letter(subject: str, body: bytes = b"Hello") -> bytes:
    return f"From: a@b.example\r\nSubject: {subject}\r\n\r\n".encode() + body


def deliver(office: ImapServer, *subjects: str) -> None:
    office.deliver([letter(subject) for subject in subjects])


def subjects(page: mailbox.Page) -> list[str]:
    return [found.mail.subject for found in page.messages]


@pytest.fixture
def imap(office: ImapServer) -> Iterator[imaplib.IMAP4]:
    with imaplib.IMAP4(imap_server.HOST, office.port, timeout=5) as imap:
        imap.login(imap_server.USER, imap_server.PASSWORD)
        yield imap


def test_an_empty_mailbox(settings: Settings) -> None:
    page = read_new(settings, None)
    assert page.messages == ()
    assert page.bookmark.last_uid == 0


def test_it_reads_on_from_its_bookmark(office: ImapServer, settings: Settings) -> None:
    deliver(office, "one", "two")
    first = read_new(settings, None)
    assert subjects(first) == ["one", "two"]
    assert read_new(settings, first.bookmark).messages == ()
    deliver(office, "three")
    second = read_new(settings, first.bookmark)
    assert subjects(second) == ["three"]
    assert second.bookmark.last_uid > first.bookmark.last_uid


def test_it_begins_with_the_newest(office: ImapServer) -> None:
    deliver(office, *"abcdef")
    few = mailbox_settings(office, bootstrap_messages=2)
    assert subjects(read_new(few, None)) == ["e", "f"]
    none = mailbox_settings(office, bootstrap_messages=0)
    page = read_new(none, None)
    assert page.messages == ()
    deliver(office, "g")
    assert subjects(read_new(none, page.bookmark)) == ["g"]


def test_a_full_mailbox_is_read_a_page_at_a_time(office: ImapServer) -> None:
    settings = mailbox_settings(office, poll_messages=2)
    page = read_new(settings, None)
    deliver(office, *"abcde")
    seen = []
    while (page := read_new(settings, page.bookmark)).messages:
        seen.append((subjects(page), page.more))
    assert seen == [(["a", "b"], True), (["c", "d"], True), (["e"], False)]


def test_a_mailbox_made_anew_is_read_anew(office: ImapServer, settings: Settings) -> None:
    deliver(office, "one", "two")
    bookmark = read_new(settings, None).bookmark
    other = Bookmark(bookmark.uid_validity + 1, 10_000)
    page = read_new(settings, other)
    assert subjects(page) == ["one", "two"]
    assert page.bookmark == bookmark


def test_reading_leaves_no_trace(settings: Settings, office: ImapServer, imap: imaplib.IMAP4) -> None:
    deliver(office, "one")
    read_new(settings, None)
    imap.select("INBOX", readonly=True)
    status, unseen = imap.uid("SEARCH", "UNSEEN")
    assert status == "OK"
    assert len(unseen[0].split()) == 1


def test_a_huge_message_is_read_in_part(office: ImapServer) -> None:
    office.deliver([letter("huge", b"x" * 3_000_000)])
    (found,) = read_new(mailbox_settings(office, message_bytes=4_096), None).messages
    assert found.truncated
    assert found.mail.subject == "huge"
    assert found.mail.payload(truncated=found.truncated)["truncated"] is True


def test_all_the_letters_of_the_demo_come_through(office: ImapServer, settings: Settings) -> None:
    sent = letters()
    office.deliver(sent)
    page = read_new(settings, None)
    assert [found.mail for found in page.messages] == [message.read(raw) for raw in sent]
    assert not any(found.truncated for found in page.messages)


def test_a_draft_is_saved_once(office: ImapServer, imap: imaplib.IMAP4) -> None:
    settings = mailbox_settings(office, drafts_mailbox="Drafts")
    raw = b"Message-ID: <d@x.invalid>\r\nSubject: Re: Hello\r\n\r\nText"
    assert save_draft(settings, raw, "<d@x.invalid>")
    assert not save_draft(mailbox_settings(office), raw, "<d@x.invalid>")
    imap.select("Drafts", readonly=True)
    _, answer = imap.fetch("1:*", "(FLAGS)")
    (line,) = answer
    assert isinstance(line, bytes)
    assert rb"\Draft" in line


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"imap_password": "wrong"}, "refused"),
        ({"imap_password": "pässword"}, "not ASCII"),
        ({"imap_mailbox": "Nowhere"}, "cannot open the mailbox"),
        ({"imap_port": 1}, "cannot be reached"),
    ],
)
def test_what_is_wrong_is_said(office: ImapServer, fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MailboxError, match=complaint) as error:
        read_new(mailbox_settings(office, **fields), None)
    assert "wrong" not in str(error.value)


def test_drafts_without_a_folder(office: ImapServer) -> None:
    with pytest.raises(MailboxError, match="cannot open the drafts"):
        save_draft(mailbox_settings(office, drafts_mailbox="Nowhere"), b"", "<d@x.invalid>")


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
def test_names_of_folders(name: str, quoted: str) -> None:
    assert mailbox._quoted(name) == quoted


# The job on top -----------------------------------------------------------------------------------------


async def test_polling_logs_what_is_new_once(office: ImapServer) -> None:
    squad = FakeSquad()
    deliver(office, "one", "two")
    where: dict[str, Any] = {"imap_port": office.port}
    expected = {"refused": 0, "more": False, "tokens_used": 0}
    async with support.agent(squad, **where) as agent:
        first = await agent.post("/api/agents/email/poll", json=support.call())
        assert await first.json() == {"found": 2, "new": 2, "known": 0, **expected}
        second = await agent.post("/api/agents/email/poll", json=support.call())
        assert await second.json() == {"found": 0, "new": 0, "known": 0, **expected}
    async with support.agent(squad, **where) as restarted:
        third = await restarted.post("/api/agents/email/poll", json=support.call())
        assert await third.json() == {"found": 2, "new": 0, "known": 2, **expected}
    assert [email["subject"] for email in squad.emails.values()] == ["one", "two"]
    assert all(email["status"] == "unread" for email in squad.emails.values())


async def test_nothing_is_passed_over_while_the_orchestrator_is_away(office: ImapServer) -> None:
    squad = FakeSquad()
    deliver(office, "one")
    async with support.agent(squad, imap_port=office.port) as agent:
        squad.broken = True
        refused = await agent.post("/api/agents/email/poll", json=support.call())
        assert refused.status == 503
        squad.broken = False
        answer = await agent.post("/api/agents/email/poll", json=support.call())
        assert (await answer.json())["new"] == 1


async def test_a_mailbox_that_is_away() -> None:
    async with support.agent(FakeSquad()) as agent:
        answer = await agent.post("/api/agents/email/poll", json=support.call())
        assert answer.status == 503
        assert "127.0.0.1:1 cannot be reached" in (await answer.json())["error"]


async def test_drafts_go_into_the_mailbox_where_that_is_wanted(office: ImapServer) -> None:
    squad = FakeSquad()
    email_id = squad.add(status="classified", category="order")
    async with support.agent(squad, imap_port=office.port, save_drafts=True) as agent:
        answer = await agent.post("/api/agents/email/respond", json=support.call(email_id))
        assert (await answer.json())["saved_to_mailbox"] is True
    drafts = read_new(mailbox_settings(office, imap_mailbox="Drafts"), None).messages
    assert drafts[-1].mail.message_id == f"<draft-{email_id}@email_agent.invalid>"
    assert drafts[-1].mail.subject == "Re: Quote for two speakers"


async def test_a_draft_that_the_mailbox_does_not_take_is_in_the_log() -> None:
    squad = FakeSquad()
    email_id = squad.add(status="classified", category="order")
    async with support.agent(squad, save_drafts=True) as agent:
        answer = await agent.post("/api/agents/email/respond", json=support.call(email_id))
        assert answer.status == 200
        assert (await answer.json())["saved_to_mailbox"] is False
    assert squad.emails[email_id]["status"] == "draft_created"
