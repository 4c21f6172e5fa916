"""The subject of a payload: the sender of an e-mail, by address, or a message itself. Pure."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple

_IN_ANGLE_BRACKETS = re.compile(r"<([^<>]+)>\s*$")


def sender(from_email: str) -> str:
    """Return the normalized address of a sender: case-folded and without the display name."""
    found = _IN_ANGLE_BRACKETS.search(from_email)
    return " ".join((found[1] if found else from_email).split()).casefold()


def digest_of(from_email: str) -> str:
    """Return the digest by which a sender's key is looked up: of fixed length, and without the address."""
    return sha256(sender(from_email).encode()).hexdigest()


class Trace(NamedTuple):
    """What the log holds about a subject, and whether it can be erased."""

    key_id: str | None = None
    """The key that it is sealed with, while the key exists."""
    emails: tuple[str, ...] = ()
    """Ids of the e-mails that are sealed with it, in whole or in part."""
    message: str | None = None
    """The message's id, if the subject is a message."""
    in_plain: bool = False
    """Whether the message was never sealed."""
    forgotten_at: int | None = None
    """The position at which the message was forgotten."""


NO_TRACE = Trace()
