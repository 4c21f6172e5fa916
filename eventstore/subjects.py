"""Whom a payload concerns: a sender, by the address, or nobody but the message itself. Pure."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple

_IN_ANGLE_BRACKETS = re.compile(r"<([^<>]+)>\s*$")


def sender(from_email: str) -> str:
    """Whose e-mail it is: the address alone, however the name before it and its case are written."""
    found = _IN_ANGLE_BRACKETS.search(from_email)
    return " ".join((found[1] if found else from_email).split()).casefold()


def digest_of(from_email: str) -> str:
    """How a sender's key is looked up. Of one length, whatever the sender; and no address to read."""
    return sha256(sender(from_email).encode()).hexdigest()


class Trace(NamedTuple):
    """What the log holds of a subject, and whether it can be erased."""

    key_id: str | None = None
    """The key that it is sealed with, while there is one."""
    emails: tuple[str, ...] = ()
    """Ids of the e-mails that are sealed with it, in whole or in part."""
    message: str | None = None
    """The message's id, where the subject is one."""
    in_plain: bool = False
    """Whether the message was never sealed."""
    forgotten_at: int | None = None
    """The position at which the message was forgotten."""


NO_TRACE = Trace()
