"""What an API key looks like: `squad_<id>_<secret>`.

The id stands in the log, in lists and in every event's actor; whoever finds a key somewhere can tell from
it which one to revoke. The secret is 256 random bits. Nobody guesses those, whatever the hash: so the hash
is a fast one, and a lookup costs about a microsecond.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import NamedTuple

PREFIX = "squad_"

ID_PATTERN = r"^[2-9a-hj-km-np-rt-z]{10}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"

# Nothing that is mistaken for something else when it is read aloud or typed.
_ID_ALPHABET = "23456789abcdefghjkmnpqrtuvwxyz"
ID_CHARACTERS = 10
_SECRET_BYTES = 32


class NewKey(NamedTuple):
    """A key, at the one moment when it is known."""

    id: str
    text: str
    digest: str


def make() -> NewKey:
    """A fresh key."""
    id_ = "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARACTERS))
    text = f"{PREFIX}{id_}_{secrets.token_hex(_SECRET_BYTES)}"
    return NewKey(id_, text, digest_of(text))


def digest_of(text: str) -> str:
    """What is kept of a key."""
    return sha256(text.encode()).hexdigest()


def id_in(text: str) -> str:
    """The id that stands in a key, or in the beginning of one; what else was given comes back as it is."""
    return text.removeprefix(PREFIX).partition("_")[0]
