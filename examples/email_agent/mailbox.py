"""The mailbox, over IMAP4rev1 (RFC 3501).

The standard library's `imaplib` is the right tool here: the agent sends a few commands every few minutes,
and needs two things that friendlier libraries lack: only the first bytes of a message, and Gmail's message
id. It blocks, so everything here runs in a thread, with a timeout on the socket.

A mailbox is opened read-only (EXAMINE) and messages are read with BODY.PEEK, so none is marked as read.
"""

from __future__ import annotations

import base64
import imaplib
import logging
import re
import ssl
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from examples.email_agent import message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.email_agent.message import Mail
    from examples.email_agent.settings import Settings

_log = logging.getLogger(__name__)

_UID = re.compile(rb"\bUID (\d+)")
_SIZE = re.compile(rb"\bRFC822\.SIZE (\d+)")
_GMAIL_ID = re.compile(rb"\bX-GM-MSGID (\d+)")
_LISTED = re.compile(rb'\((?P<flags>[^)]*)\) (?:"(?:\\.|[^"\\])*"|NIL) (?P<name>.+)')
_NOT_PLAIN = re.compile(r"[^\x20-\x7e]+|&")


class MailboxError(Exception):
    """The mailbox cannot be used now. The message says why, and never contains the password."""


@dataclass(frozen=True)
class Bookmark:
    """How far a mailbox has been read. A UID is meaningful only together with its UIDVALIDITY."""

    uid_validity: int
    last_uid: int


@dataclass(frozen=True)
class Found:
    """A message of the mailbox."""

    uid: int
    mail: Mail
    gmail_id: int | None
    truncated: bool

    @property
    def external_id(self) -> str:
        """Its id in the e-mail log."""
        return self.mail.external_id(self.gmail_id)


@dataclass(frozen=True)
class Page:
    """New messages, oldest first, and the bookmark to continue from once they are logged."""

    messages: tuple[Found, ...]
    bookmark: Bookmark
    more: bool


def read_new(settings: Settings, bookmark: Bookmark | None) -> Page:
    """Read the messages after the bookmark; without a valid bookmark, the newest messages.

    Raises:
        MailboxError: the mailbox cannot be read.
    """
    with _session(settings) as imap:
        _checked(imap.select(_quoted(settings.imap_mailbox), readonly=True), "open the mailbox")
        uid_validity = _number(imap, "UIDVALIDITY")
        if bookmark is None or bookmark.uid_validity != uid_validity:
            uids, last = _newest(imap, settings.bootstrap_messages)
            # Messages that arrive in the meantime are left for the next call.
            bookmark, limit = Bookmark(uid_validity, last), len(uids)
        else:
            uids = _after(imap, bookmark.last_uid)
            limit = settings.poll_messages
            bookmark = Bookmark(uid_validity, max([bookmark.last_uid, *uids[:limit]]))
        found = [_fetch(imap, uid, settings.message_bytes) for uid in uids[:limit]]
        return Page(tuple(item for item in found if item), bookmark, more=len(uids) > limit)


def save_draft(settings: Settings, raw: bytes, message_id: str) -> bool:
    """Save a draft in the drafts folder, unless it is there already; return whether it was saved.

    Raises:
        MailboxError: there is no drafts folder, or the draft cannot be saved.
    """
    with _session(settings) as imap:
        folder = _quoted(settings.drafts_mailbox) if settings.drafts_mailbox else _drafts_folder(imap)
        _checked(imap.select(folder, readonly=True), "open the drafts")
        if _checked(imap.uid("SEARCH", "HEADER", "Message-ID", f'"{message_id}"'), "search the drafts")[0]:
            return False
        # imaplib takes None for "no date", though typeshed's stubs do not know it.
        no_date: Any = None
        _checked(imap.append(folder, r"(\Draft)", no_date, raw), "save the draft")
        return True


@contextmanager
def _session(settings: Settings) -> Iterator[imaplib.IMAP4]:
    where = f"{settings.imap_host}:{settings.imap_port}"
    imap: imaplib.IMAP4 | None = None
    try:
        imap = _connect(settings)
        imap.login(settings.imap_user, settings.imap_password.get_secret_value())
        yield imap
    except imaplib.IMAP4.abort as error:
        raise MailboxError(f"the connection to {where} broke: {error}") from error
    except imaplib.IMAP4.error as error:
        raise MailboxError(f"{where} refused: {_said(error.args[0] if error.args else '')}") from error
    except UnicodeEncodeError as error:
        raise MailboxError("the user or the password has a character that is not ASCII") from error
    except OSError as error:
        raise MailboxError(f"{where} cannot be reached: {error}") from error
    finally:
        if imap is not None:
            with suppress(imaplib.IMAP4.error, OSError):
                imap.logout()


def _connect(settings: Settings) -> imaplib.IMAP4:
    host, port, seconds = settings.imap_host, settings.imap_port, settings.imap_timeout_seconds
    if settings.imap_security == "tls":
        context = ssl.create_default_context()
        return imaplib.IMAP4_SSL(host, port, ssl_context=context, timeout=seconds)
    imap = imaplib.IMAP4(host, port, timeout=seconds)
    if settings.imap_security == "starttls":
        imap.starttls(ssl.create_default_context())
    return imap


def _newest(imap: imaplib.IMAP4, count: int) -> tuple[list[int], int]:
    """The UIDs of the newest messages, in order, and the last UID that exists."""
    exists = _number(imap, "EXISTS")
    if exists == 0:
        return [], 0
    first = max(1, exists - max(1, count) + 1)
    uids = _uids(_checked(imap.fetch(f"{first}:{exists}", "(UID)"), "list the messages"))
    return (uids[-count:] if count else []), max(uids, default=0)


def _after(imap: imaplib.IMAP4, last: int) -> list[int]:
    # "n:*" always includes the last message, even if its UID is below n.
    listed = _checked(imap.uid("FETCH", f"{last + 1}:*", "(UID)"), "list the messages")
    return [uid for uid in _uids(listed) if uid > last]


def _fetch(imap: imaplib.IMAP4, uid: int, limit: int) -> Found | None:
    """One message, up to the limit; None if it is gone or the server cannot read it."""
    gmail = "X-GM-MSGID " if "X-GM-EXT-1" in imap.capabilities else ""
    items = f"(UID RFC822.SIZE {gmail}BODY.PEEK[]<0.{limit}>)"
    status, answer = imap.uid("FETCH", str(uid), items)
    if status != "OK":
        # One damaged message must not block all later ones.
        _log.warning("skipping message %d: the server says %s", uid, _said(answer[0]))
        return None
    for index, part in enumerate(answer):
        if not isinstance(part, tuple):
            continue
        # A server may send attributes before and after the message itself.
        rest = answer[index + 1] if index + 1 < len(answer) else b""
        attributes = part[0] + b" " + (rest if isinstance(rest, bytes) else b"")
        if _first(_UID, attributes) == uid:
            raw: bytes = part[1]
            size = _first(_SIZE, attributes) or len(raw)
            return Found(uid, message.read(raw), _first(_GMAIL_ID, attributes), truncated=size > len(raw))
    return None


def _drafts_folder(imap: imaplib.IMAP4) -> str:
    r"""The folder that the server marks with \Drafts (RFC 6154), otherwise one named drafts."""
    names = [
        (match["flags"].lower(), match["name"].decode("ascii", "replace"))
        for line in _checked(imap.list(), "list the folders")
        if isinstance(line, bytes) and (match := _LISTED.fullmatch(line))
    ]
    for flags, name in names:
        if rb"\drafts" in flags.split():
            return name
    for _, name in names:
        if name.strip('"').lower() in ("drafts", "inbox.drafts", "inbox/drafts"):
            return name
    raise MailboxError("no drafts folder found: name one with EMAIL_AGENT_DRAFTS_MAILBOX")


def _checked(answer: tuple[str, list[Any]], what: str) -> list[Any]:
    status, data = answer
    if status != "OK":
        raise MailboxError(f"cannot {what}: the server says {_said(data[0] if data else '')}")
    return data


def _said(words: object) -> str:
    return words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)


def _number(imap: imaplib.IMAP4, name: str) -> int:
    _, data = imap.response(name)
    if not data or not isinstance(data[-1], bytes) or not data[-1].isdigit():
        raise MailboxError(f"the server did not send {name}")
    return int(data[-1])


def _uids(answer: list[Any]) -> list[int]:
    lines = (line for line in answer if isinstance(line, bytes))
    return sorted({uid for line in lines if (uid := _first(_UID, line)) is not None})


def _first(pattern: re.Pattern[bytes], text: bytes) -> int | None:
    match = pattern.search(text)
    return int(match[1]) if match else None


def _quoted(mailbox: str) -> str:
    """A folder name as IMAP writes it: in modified UTF-7 (RFC 3501, section 5.1.3), quoted."""
    encoded = _NOT_PLAIN.sub(lambda match: _modified_base64(match[0]), mailbox)
    escaped = encoded.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _modified_base64(text: str) -> str:
    if text == "&":
        return "&-"
    code = base64.b64encode(text.encode("utf-16-be")).decode().rstrip("=").replace("/", ",")
    return f"&{code}-"
