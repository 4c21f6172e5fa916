"""The format of API keys: `squad_<id>_<secret>`.

The id appears in the log, in lists and in every event's actor, so a key that is found somewhere shows which
one to revoke. The secret is 256 random bits, which cannot be guessed whatever the hash: so the hash is a
fast one, and a lookup costs about a microsecond.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import NamedTuple

PREFIX = "squad_"

ID_PATTERN = r"^[2-9a-hj-km-np-rt-z]{10}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"

# No characters that are easily confused when read aloud or typed.
_ID_ALPHABET = "23456789abcdefghjkmnpqrtuvwxyz"
ID_CHARACTERS = 10
_SECRET_BYTES = 32


class NewKey(NamedTuple):
    """A new key, at the only moment when its text is known."""

    id: str
    text: str
    digest: str


def make() -> NewKey:
    """Return a fresh key."""
    id_ = "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARACTERS))
    text = f"{PREFIX}{id_}_{secrets.token_hex(_SECRET_BYTES)}"
    return NewKey(id_, text, digest_of(text))


def digest_of(text: str) -> str:
    """Return the digest of a key, which is all that is stored of it."""
    return sha256(text.encode()).hexdigest()


def id_in(text: str) -> str:
    """Return the id in a key or in its beginning; any other text is returned unchanged."""
    return text.removeprefix(PREFIX).partition("_")[0]
