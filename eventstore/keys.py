"""The keys that personal payloads are sealed with: create, load, cache, export and import them.

They are stored in `subject_keys`, the one table that is not rebuilt from the log, on purpose: a payload can
be read only as long as its key is there. The key of an e-mail is its sender's, looked up by a digest of the
address; a message has a key of its own, which only the message refers to. Key ids are UUIDv7 and reveal
nothing about whose they are. The event `subject_forgotten` destroys its key in the transaction that appends
it.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from os import urandom
from typing import TYPE_CHECKING, NamedTuple

from uuid_utils import uuid7

from eventstore.errors import StoreBusy
from eventstore.ids import NIL
from eventstore.queries import one_value
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterable, Sequence

    from eventstore.connection import Connection

KEY_BYTES = 32
"""AES-256."""

MAX_CACHED_KEYS = 20_000
"""How many keys a process caches."""

PAGE_KEYS = 5_000
"""How many keys an export reads at once."""

_MAX_ATTEMPTS = 10
_LOAD = "SELECT id::text, key FROM subject_keys WHERE id = ANY(%s::uuid[])"
_OF_SUBJECTS = "SELECT subject, id::text, key FROM subject_keys WHERE subject = ANY(%s)"
_MAKE = (
    "INSERT INTO subject_keys (id, subject, key) SELECT * FROM unnest(%s::uuid[], %s::text[], %s::bytea[])"
    " ON CONFLICT (subject) WHERE subject IS NOT NULL DO NOTHING RETURNING subject"
)
# Each column is one value: there can be a thousand keys, and arrays are expensive.
_STORE = (
    "INSERT INTO subject_keys (id, key)"
    " SELECT id::uuid, substring(%b::bytea FROM (n::integer - 1) * 32 + 1 FOR 32)"
    " FROM unnest(string_to_array(%s, ',')) WITH ORDINALITY AS new (id, n)"
)


class Key(NamedTuple):
    """A key, and the id by which sealed events refer to it."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        """Return the id alone: secrets have no place in a log line."""
        return f"Key({self.id!r})"


class StoredKey(NamedTuple):
    """A row of `subject_keys`. `subject` is None for a message's key."""

    id: str
    subject: str | None
    key: bytes
    created_at: datetime

    def __repr__(self) -> str:
        """Return all but the secret."""
        return f"StoredKey({self.id!r}, {self.subject!r})"


def new_key() -> Key:
    """Return a new random key."""
    return Key(str(uuid7()), urandom(KEY_BYTES))


def new_keys(number: int) -> list[Key]:
    """Return so many new random keys, with one system call."""
    random = urandom(KEY_BYTES * number)
    return [Key(str(uuid7()), random[at : at + KEY_BYTES]) for at in range(0, len(random), KEY_BYTES)]


# In memory ----------------------------------------------------------------------------------------------


class Keyring:
    """A cache of keys, of which the least recently used are evicted.

    A reader that learns of a key's destruction calls `remove`. From then on the key is not in the cache,
    even if it was being loaded at that moment and the database still had it.
    """

    def __init__(self, most: int = MAX_CACHED_KEYS) -> None:
        self._most = most
        self._secrets: OrderedDict[str, bytes] = OrderedDict()
        self._removals = 0

    def put(self, keys: Iterable[Key]) -> None:
        """Add keys, and evict the least recently used beyond the limit."""
        self._secrets.update(keys)
        while len(self._secrets) > self._most:
            self._secrets.popitem(last=False)

    def clear(self) -> None:
        """Remove all keys."""
        self._secrets.clear()
        self._removals += 1

    def remove(self, key_id: str) -> None:
        """Remove a key that was destroyed."""
        self._secrets.pop(key_id, None)
        self._removals += 1

    async def secrets(self, connection: Connection, ids: Collection[str]) -> dict[str, bytes]:
        """Return those of these keys that exist. Those not in the cache are loaded with one query."""
        while True:
            before = self._removals
            found = {id_: secret for id_ in ids if (secret := self._cached(id_))}
            missing = [id_ for id_ in ids if id_ not in found]
            if not missing:
                return found
            loaded = await load(connection, missing)
            if before == self._removals:
                self.put(Key(id_, secret) for id_, secret in loaded.items())
                return found | loaded

    def _cached(self, key_id: str) -> bytes | None:
        secret = self._secrets.get(key_id)
        if secret:
            self._secrets.move_to_end(key_id)
        return secret


# In the database ----------------------------------------------------------------------------------------


async def load(connection: Connection, ids: Sequence[str]) -> dict[str, bytes]:
    """Load those of these keys that exist."""
    with translating():
        cursor = await connection.execute(_LOAD, (list(ids),), prepare=True)
        return {id_: bytes(secret) for id_, secret in await cursor.fetchall()}


async def store(connection: Connection, keys: Sequence[Key]) -> None:
    """Store keys of messages. In autocommit mode they are durable when this returns."""
    with translating():
        ids, secrets = zip(*keys, strict=True)
        await connection.execute(_STORE, (b"".join(secrets), ",".join(ids)), prepare=True)


async def get_or_create_sender_keys(connection: Connection, digests: Collection[str]) -> dict[str, Key]:
    """Return the senders' keys by digest, creating those that are missing; all processes get the same key.

    Raises:
        StoreBusy: a key was destroyed again and again while it was looked up.
    """
    found: dict[str, Key] = {}
    with translating():
        for _ in range(_MAX_ATTEMPTS):
            missing_digests = sorted(set(digests) - found.keys())
            cursor = await connection.execute(_OF_SUBJECTS, (missing_digests,), prepare=True)
            found |= {digest: Key(id_, bytes(secret)) for digest, id_, secret in await cursor.fetchall()}
            if made := {digest: new_key() for digest in missing_digests if digest not in found}:
                ids, secrets = [key.id for key in made.values()], [key.secret for key in made.values()]
                cursor = await connection.execute(_MAKE, (ids, list(made), secrets), prepare=True)
                # Another process has created those that are not returned; the next attempt finds them.
                found |= {digest: made[digest] for (digest,) in await cursor.fetchall()}
            if len(found) == len(set(digests)):
                return found
    raise StoreBusy("keys of senders were destroyed as fast as they were made")


async def export_keys(connection: Connection) -> AsyncGenerator[list[StoredKey], None]:
    """Yield all keys, page by page. With them and the log, everything can be read.

    A schema that predates keys and was not upgraded yet has none.

    For the keys to match an export of the log, read both in the same repeatable-read transaction.
    """
    query = (
        "SELECT id::text, subject, key, created_at FROM subject_keys"
        " WHERE id > %s::uuid ORDER BY id LIMIT %s"
    )
    after = NIL
    has_table = await one_value(connection, "SELECT to_regclass('subject_keys') IS NOT NULL")
    while has_table:
        with translating():
            cursor = await connection.execute(query, (after, PAGE_KEYS))
            page = [
                StoredKey(id_, subject, bytes(key), at) for id_, subject, key, at in await cursor.fetchall()
            ]
        if page:
            yield page
            after = page[-1].id
        if len(page) < PAGE_KEYS:
            return


async def import_keys(connection: Connection, keys: Sequence[StoredKey]) -> None:
    """Insert keys that `export_keys` yielded, before the events that they belong to.

    If they came after the events, a key that one of those events destroyed would exist again.

    Raises:
        StoreRefused: one of them exists already, or is not a valid key.
    """
    query = (
        "INSERT INTO subject_keys (id, subject, key, created_at)"
        " SELECT * FROM unnest(%s::uuid[], %s::text[], %s::bytea[], %s::timestamptz[])"
    )
    if keys:
        with translating():
            await connection.execute(query, [list(column) for column in zip(*keys, strict=True)])
