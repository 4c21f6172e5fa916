"""The keys that personal payloads are sealed with: made, found, kept at hand, and found out about.

They lie in `subject_keys`, the one table that is not rebuilt from the log, on purpose: a payload can be
read for as long as its key lies there. An e-mail's key is its sender's, who is looked up by a digest of the
address; a message has a key of its own, which only the message names. Ids of keys are UUIDv7 and say
nothing about whom they belong to. The event `subject_forgotten` destroys its key in the transaction that
appends it.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime
from os import urandom
from typing import TYPE_CHECKING, NamedTuple

from uuid_utils import uuid7

from eventstore.asking import one_value
from eventstore.errors import StoreBusy
from eventstore.ids import NIL
from eventstore.translation import translating

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterable, Sequence

    from eventstore.connection import Connection

KEY_BYTES = 32
"""AES-256."""

KEPT_KEYS = 20_000
"""How many keys a process keeps at hand."""

PAGE_KEYS = 5_000
"""How many keys a reader of all of them takes at once."""

_ATTEMPTS = 10
_LOAD = "SELECT id::text, key FROM subject_keys WHERE id = ANY(%s::uuid[])"
_OF_SUBJECTS = "SELECT subject, id::text, key FROM subject_keys WHERE subject = ANY(%s)"
_MAKE = (
    "INSERT INTO subject_keys (id, subject, key) SELECT * FROM unnest(%s::uuid[], %s::text[], %s::bytea[])"
    " ON CONFLICT (subject) WHERE subject IS NOT NULL DO NOTHING RETURNING subject"
)
# A column travels as one value: there can be a thousand, and arrays are dear.
_STORE = (
    "INSERT INTO subject_keys (id, key)"
    " SELECT id::uuid, substring(%b::bytea FROM (n::integer - 1) * 32 + 1 FOR 32)"
    " FROM unnest(string_to_array(%s, ',')) WITH ORDINALITY AS new (id, n)"
)


class Key(NamedTuple):
    """A key, and the name that sealed events call it by."""

    id: str
    secret: bytes

    def __repr__(self) -> str:
        """Its name alone: secrets have no place in a log line."""
        return f"Key({self.id!r})"


class StoredKey(NamedTuple):
    """A row of `subject_keys`. `subject` is None for a message's key."""

    id: str
    subject: str | None
    key: bytes
    created_at: datetime

    def __repr__(self) -> str:
        """All but the secret."""
        return f"StoredKey({self.id!r}, {self.subject!r})"


def new_key() -> Key:
    """A key that nobody has."""
    return Key(str(uuid7()), urandom(KEY_BYTES))


def new_keys(number: int) -> list[Key]:
    """So many keys that nobody has, from one call of the system."""
    random = urandom(KEY_BYTES * number)
    return [Key(str(uuid7()), random[at : at + KEY_BYTES]) for at in range(0, len(random), KEY_BYTES)]


# At hand ------------------------------------------------------------------------------------------------


class Keyring:
    """Keys that this process has at hand.

    Whoever sees that a key was destroyed lets go of it, and from then on it is not here: neither is one
    that was being loaded at that moment, and was still there when the database was asked.
    """

    def __init__(self, most: int = KEPT_KEYS) -> None:
        self._most = most
        self._secrets: OrderedDict[str, bytes] = OrderedDict()
        self._let_go = 0

    def put(self, keys: Iterable[Key]) -> None:
        """Keeps keys at hand, in the place of those that were not asked for the longest."""
        self._secrets.update(keys)
        while len(self._secrets) > self._most:
            self._secrets.popitem(last=False)

    def clear(self) -> None:
        """Lets go of all keys."""
        self._secrets.clear()
        self._let_go += 1

    def let_go(self, key_id: str) -> None:
        """The key was destroyed."""
        self._secrets.pop(key_id, None)
        self._let_go += 1

    async def secrets(self, connection: Connection, ids: Collection[str]) -> dict[str, bytes]:
        """The keys with these ids, as far as they exist. Those not at hand are asked for, all at once."""
        while True:
            before = self._let_go
            found = {id_: secret for id_ in ids if (secret := self._at_hand(id_))}
            missing = [id_ for id_ in ids if id_ not in found]
            if not missing:
                return found
            loaded = await load(connection, missing)
            if before == self._let_go:
                self.put(Key(id_, secret) for id_, secret in loaded.items())
                return found | loaded

    def _at_hand(self, key_id: str) -> bytes | None:
        secret = self._secrets.get(key_id)
        if secret:
            self._secrets.move_to_end(key_id)
        return secret


# In the database ----------------------------------------------------------------------------------------


async def load(connection: Connection, ids: Sequence[str]) -> dict[str, bytes]:
    """The keys with these ids, as far as they exist."""
    with translating():
        cursor = await connection.execute(_LOAD, (list(ids),), prepare=True)
        return {id_: bytes(secret) for id_, secret in await cursor.fetchall()}


async def store(connection: Connection, keys: Sequence[Key]) -> None:
    """Makes keys of messages durable; in autocommit mode they are when this returns."""
    with translating():
        ids, secrets = zip(*keys, strict=True)
        await connection.execute(_STORE, (b"".join(secrets), ",".join(ids)), prepare=True)


async def of_senders(connection: Connection, digests: Collection[str]) -> dict[str, Key]:
    """The senders' keys by their digests. Where there is none it is made; all processes get the same.

    Raises:
        StoreBusy: a key was destroyed again and again while it was looked for.
    """
    found: dict[str, Key] = {}
    with translating():
        for _ in range(_ATTEMPTS):
            wanted = sorted(set(digests) - found.keys())
            cursor = await connection.execute(_OF_SUBJECTS, (wanted,), prepare=True)
            found |= {digest: Key(id_, bytes(secret)) for digest, id_, secret in await cursor.fetchall()}
            if made := {digest: new_key() for digest in wanted if digest not in found}:
                ids, secrets = [key.id for key in made.values()], [key.secret for key in made.values()]
                cursor = await connection.execute(_MAKE, (ids, list(made), secrets), prepare=True)
                # Who is not among them was made by somebody else meanwhile, and is found on the next look.
                found |= {digest: made[digest] for (digest,) in await cursor.fetchall()}
            if len(found) == len(set(digests)):
                return found
    raise StoreBusy("keys of senders were destroyed as fast as they were made")


async def read_out(connection: Connection) -> AsyncGenerator[list[StoredKey], None]:
    """Every key there is, page by page: whoever has them and the log can read everything.

    A schema from before there were keys, which was not upgraded yet, has none.

    To go with a log that was read at one moment, it must be read in the same repeatable-read transaction.
    """
    query = (
        "SELECT id::text, subject, key, created_at FROM subject_keys"
        " WHERE id > %s::uuid ORDER BY id LIMIT %s"
    )
    after = NIL
    is_there = await one_value(connection, "SELECT to_regclass('subject_keys') IS NOT NULL")
    while is_there:
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


async def read_in(connection: Connection, keys: Sequence[StoredKey]) -> None:
    """Takes in keys that `read_out` gave, before the events that they belong to.

    The other way round, a key that one of those events destroyed would come back to life.

    Raises:
        StoreRefused: one of them is here already, or is no key.
    """
    query = (
        "INSERT INTO subject_keys (id, subject, key, created_at)"
        " SELECT * FROM unnest(%s::uuid[], %s::text[], %s::bytea[], %s::timestamptz[])"
    )
    if keys:
        with translating():
            await connection.execute(query, [list(column) for column in zip(*keys, strict=True)])
