"""Drafts for a person to send. Without a language model, they are templates by category."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from examples.email_agent.message import without_quotes
from examples.email_agent.rules import NOT_ANSWERED, Category

if TYPE_CHECKING:
    from collections.abc import Mapping

_REPLY = re.compile(r"^((re|aw|fwd?|wg|sv|antw)\s*(\[\d+\])?\s*:\s*)+", re.IGNORECASE)
_ORDER_NUMBER = re.compile(
    r"\b(?P<kind>purchase order|order|invoice|po)[\s#:-]*(?:(?:no\.?|number)[\s#:-]*)?"
    r"(?P<number>[A-Z]{0,4}-?\d{3,10})\b",
    re.IGNORECASE,
)
_SIGNED = re.compile(
    r"^(?:(?:kind|best|warm|many) )?(?:regards|thanks|wishes|cheers|thank you|sincerely|yours \w+)[,.!]*"
    r"[^\S\n]*\n\s*(?P<name>[^\W\d_][^\W\d_'-]{1,20})\b",
    re.IGNORECASE | re.MULTILINE,
)

# {topic} is the mail's subject, {number} the number of an order or invoice, if the mail has one.
TEMPLATES: dict[Category, str] = {
    "quote_request": (
        "thank you for your enquiry about {topic}. We are putting a quotation together for you.\n\n"
        "So that it fits, could you tell us:\n"
        "- which products, and how many of each;\n"
        "- where they are to be delivered, and whether we should install them;\n"
        "- by when you need them."
    ),
    "order": (
        "thank you for your order{number}. We are checking stock and delivery, and will confirm both to "
        "you, with the invoice, within one working day.\n\n"
        "If the delivery address or anything else has changed, simply reply to this message."
    ),
    "complaint": (
        "thank you for telling us, and please accept our apology: this is not how it should have gone"
        "{number}.\n\n"
        "We are looking into it today. Could you send us a photo if something is damaged, and say whether "
        "you would prefer a replacement or your money back?"
    ),
    "support": (
        "thank you for your question about {topic}. One of our technicians is looking at it.\n\n"
        "It would help to know the exact model, what it is connected to, and what you have tried already."
    ),
    "other": (
        "thank you for your message about {topic}. We have received it, and the right person here will "
        "come back to you within one working day."
    ),
}


@dataclass(frozen=True)
class Draft:
    """An unsent answer."""

    to: str
    subject: str
    text: str
    in_reply_to: str | None
    references: tuple[str, ...]
    written_by: str
    """`template`, or the name of the language model."""

    def payload(self) -> dict[str, Any]:
        """The draft as stored in the e-mail log."""
        return {**asdict(self), "references": list(self.references)}

    def as_mime(self, message_id: str) -> bytes:
        """The draft as a message for a mailbox. It has no sender until a person sends it."""
        mime = EmailMessage()
        mime["To"], mime["Subject"], mime["Message-ID"] = self.to, self.subject, message_id
        mime["Date"] = formatdate()
        if self.in_reply_to:
            mime["In-Reply-To"] = self.in_reply_to
        if self.references:
            mime["References"] = " ".join(self.references)
        mime.set_content(self.text)
        return mime.as_bytes()


def wanted(category: str, payload: Mapping[str, Any], from_email: str) -> bool:
    """Whether a mail gets an answer; automatic mail and advertising get none."""
    answerable = category not in NOT_ANSWERED and not payload.get("automatic")
    return answerable and "@" in _recipient(payload, from_email)


def from_template(category: str, subject: str, text: str, signature: str) -> str:
    """The text of a draft for a mail of this category."""
    known: dict[str, str] = {name: template for name, template in TEMPLATES.items()}  # noqa: C416 - widens the keys
    template = known.get(category, TEMPLATES["other"])
    words = without_quotes(text)
    topic = _REPLY.sub("", subject).strip(" .!?")
    body = template.format(
        topic=f"“{topic}”" if topic else "this",
        number=_number(f"{subject}\n{words}"),
    )
    return f"{_greeting(words)},\n\n{body}\n\n{signature}"


def assemble(
    from_email: str, subject: str, payload: Mapping[str, Any], text: str, written_by: str
) -> Draft:
    """Build a draft from a text, with the subject, recipient and thread of the mail it answers."""
    message_id = payload.get("message_id")
    references = [*payload.get("references", []), *([message_id] if message_id else [])]
    return Draft(
        to=_recipient(payload, from_email),
        subject=f"Re: {_REPLY.sub('', subject).strip() or '(no subject)'}",
        text=text.strip() + "\n",
        in_reply_to=message_id,
        references=tuple(references),
        written_by=written_by,
    )


def _number(words: str) -> str:
    named = _ORDER_NUMBER.search(words)
    return f" ({named['kind'].lower()} {named['number'].upper()})" if named else ""


def _recipient(payload: Mapping[str, Any], from_email: str) -> str:
    return str(payload.get("reply_to") or from_email)


def _greeting(words: str) -> str:
    signed = _SIGNED.search(words)
    return f"Hello {signed['name'].capitalize()}" if signed else "Hello"
