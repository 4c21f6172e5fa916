"""Parse a mail into what the orchestrator stores of it. No mail, however broken, may raise an error.

Mail breaks every rule: headers in raw Latin-1, unknown charsets, base64 cut off in the middle, unterminated
MIME trees. The standard library's parser is used in its older, lenient mode (`compat32`), because the newer
one raises on headers that it cannot parse.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC
from email import message_from_bytes, policy
from email.errors import HeaderParseError
from email.header import Header, decode_header
from email.utils import getaddresses, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from examples.email_agent.html_text import text_of

if TYPE_CHECKING:
    from email.message import Message

EXCERPT_CHARACTERS = 4_000
SUBJECT_CHARACTERS = 500
_MAX_PARTS = 200
_MAX_REFERENCES = 50
_MAX_ID_CHARACTERS = 255
_MAX_HEADER_CHARACTERS = 8_000

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_CONTROL_BUT_BREAKS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ufeff]+")
_UNSTORABLE = re.compile("[\ud800-\udfff]")
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,253}>")
_ADDRESS = re.compile(r"(?<![^\s@<>\",;])[^\s@<>\",;]+@[^\s@<>\",;]+")
# Python encodings that no mail uses; some are very slow.
_NOT_CHARSETS = frozenset({"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"})
# The reasons codecs give for a character that one of our limits has cut in half.
_CUT_SHORT = frozenset({"unexpected end of data", "incomplete multibyte sequence", "truncated data"})
_QUOTE_BEGINS = re.compile(
    r"^(On .{5,200} wrote:|Am .{5,200} schrieb.{0,100}:|-{2,} ?(Original Message|Forwarded message).*)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Mail:
    """What is stored of a mail."""

    from_email: str
    subject: str
    text: str
    message_id: str | None = None
    date: str | None = None
    to: tuple[str, ...] = ()
    reply_to: str | None = None
    references: tuple[str, ...] = ()
    attachments: tuple[str, ...] = ()
    bulk: bool = False
    """Sent to many recipients: a newsletter, a mailing list."""
    automatic: bool = False
    """Sent automatically, such as an out-of-office note."""
    header_digest: str = field(default="", repr=False)

    def payload(self, *, truncated: bool = False) -> dict[str, Any]:
        """The mail as stored in the e-mail log's `payload`, without empty and false fields."""
        fields: dict[str, Any] = {
            "text": self.text,
            "date": self.date,
            "to": list(self.to),
            "reply_to": self.reply_to,
            "message_id": self.message_id,
            "references": list(self.references),
            "attachments": list(self.attachments),
            "bulk": self.bulk,
            "automatic": self.automatic,
            "truncated": truncated,
        }
        return {name: value for name, value in fields.items() if value or name == "text"}

    def external_id(self, gmail_id: int | None) -> str:
        """A unique id, the same each time the mail is read.

        Gmail's own id if there is one, written as in Gmail's API; otherwise the Message-ID; for a mail
        without one, a digest of its header.
        """
        if gmail_id is not None:
            return f"{gmail_id:x}"
        return self.message_id or f"sha256:{self.header_digest}"


class _TruncatedHeaders(policy.Compat32):
    """Truncates headers: the library takes time quadratic in their length."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """A header's value, truncated if it is too long."""
        return super().header_fetch_parse(name, value[:_MAX_HEADER_CHARACTERS])


_POLICY = _TruncatedHeaders()


def read(raw: bytes) -> Mail:
    """Parse a mail, or as much of it as can be parsed."""
    header = raw.partition(b"\r\n\r\n")[0].partition(b"\n\n")[0]
    digest = hashlib.sha256(header).hexdigest()
    try:
        return _read(message_from_bytes(raw, policy=_POLICY), digest)
    except Exception:  # noqa: BLE001 - on broken mail the library raises almost anything, even RecursionError
        return Mail(from_email="unknown", subject="(an unreadable message)", text="", header_digest=digest)


def without_quotes(text: str) -> str:
    """The text without quotes of earlier mails."""
    kept: list[str] = []
    for line in text.splitlines():
        if _QUOTE_BEGINS.match(line.strip()):
            break
        if not line.lstrip().startswith(">"):
            kept.append(line)
    return "\n".join(kept).strip() or text


def _read(message: Message, digest: str) -> Mail:
    ids = _MESSAGE_ID.findall(_header(message, "Message-ID"))
    references = _MESSAGE_ID.findall(f"{_header(message, 'References')} {_header(message, 'In-Reply-To')}")
    senders = _addresses(message, "From") or _addresses(message, "Sender")
    reply_to = _addresses(message, "Reply-To")
    text, attachments = _content(message)
    return Mail(
        from_email=(senders[0] if senders else "unknown")[:320],
        subject=_header(message, "Subject")[:SUBJECT_CHARACTERS],
        text=text,
        message_id=ids[0] if ids and len(ids[0]) <= _MAX_ID_CHARACTERS else None,
        date=_date(message),
        to=tuple(_addresses(message, "To")[:20]),
        reply_to=reply_to[0] if reply_to else None,
        references=tuple(dict.fromkeys(references))[-_MAX_REFERENCES:],
        attachments=tuple(attachments),
        bulk=bool(message.get("List-Unsubscribe") or message.get("List-Id"))
        or _header(message, "Precedence").lower() in ("bulk", "list"),
        automatic=_header(message, "Auto-Submitted").lower() not in ("", "no"),
        header_digest=digest,
    )


# Headers ----------------------------------------------------------------------------------------------


def _header(message: Message, name: str) -> str:
    """A header as one line of Unicode; empty if there is none."""
    value = message.get(name)
    if value is None:
        return ""
    try:
        chunks = decode_header(value)
    except (HeaderParseError, ValueError):
        chunks = [(str(value), None)]
    text = "".join(
        chunk if isinstance(chunk, str) else _decoded(chunk, charset) for chunk, charset in chunks
    )
    return " ".join(_storable(_CONTROL.sub(" ", text)).split())


def _addresses(message: Message, name: str) -> list[str]:
    # Names are not stored, so encoded words in them need no decoding; addresses cannot have any.
    values = [_storable(_CONTROL.sub(" ", _undecoded(value))) for value in message.get_all(name, [])]
    pairs = getaddresses(values)
    found = [address for _, address in pairs if _ADDRESS.fullmatch(address)]
    return found or _ADDRESS.findall(_header(message, name))[:1]


def _undecoded(value: Header | str) -> str:
    """A header as text: encoded words stay as they are, raw bytes (as in newer addresses) are decoded."""
    if isinstance(value, str):
        return value
    return "".join(_decoded(chunk, charset) for chunk, charset in decode_header(value))


def _date(message: Message) -> str | None:
    try:
        moment = parsedate_to_datetime(_header(message, "Date"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError, TypeError):
        return None


# Content ----------------------------------------------------------------------------------------------


def _content(message: Message) -> tuple[str, list[str]]:
    """The text that a person would read first, and the names of the attachments."""
    plain, html, attachments = "", "", []
    for number, part in enumerate(message.walk()):
        if number >= _MAX_PARTS:
            break
        if part.is_multipart():
            continue
        name = part.get_filename()
        if name or part.get_content_disposition() == "attachment":
            attachments.append(_storable(_CONTROL.sub(" ", name or part.get_content_type()))[:200])
        elif not plain and part.get_content_type() == "text/plain":
            plain = _text(part).strip()
        elif not html and part.get_content_type() == "text/html":
            html = text_of(_text(part))
    return _excerpt(plain or html), attachments[:20]


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    return _decoded(payload, part.get_content_charset())


def _decoded(raw: bytes, charset: str | None) -> str:
    """The text decoded by the declared charset, else as UTF-8, else as CP1252 with replacements."""
    for name in (charset, "utf-8"):
        if name and name.lower().replace("-", "_") not in _NOT_CHARSETS:
            try:
                return raw.decode(name)
            except UnicodeDecodeError as error:
                if name == charset and error.end == len(raw) and error.reason in _CUT_SHORT:
                    return raw[: error.start].decode(name)
            except (LookupError, ValueError):
                continue
    return raw.decode("cp1252", errors="replace")


def _excerpt(text: str) -> str:
    text = _CONTROL_BUT_BREAKS.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _storable("\n".join(line.rstrip() for line in text.split("\n"))).strip()
    return text if len(text) <= EXCERPT_CHARACTERS else text[: EXCERPT_CHARACTERS - 1] + "…"


def _storable(text: str) -> str:
    """The text without lone surrogates, which neither JSON nor Postgres can hold."""
    return _UNSTORABLE.sub("\ufffd", text)
