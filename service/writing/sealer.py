"""Which payloads are sealed with whose key, when this process encrypts what it appends.

Keys are durable before the batch that uses them. A sender's key is created or looked up before the batch is
decided. Keys for messages come from a pool, so that not every batch waits for another commit. If the batch
is not appended, its message keys are wasted, which is harmless: a key that sealed nothing is only a row.

No event is sealed with a destroyed key. An event destroys a key. A process that has not folded that event
yet decides at a stale head, so it must decide again; one that has folded it has dropped the key.
"""

from __future__ import annotations

from collections import OrderedDict
from os import urandom
from types import MappingProxyType
from typing import TYPE_CHECKING

import orjson

from eventstore import keys, sealing
from eventstore.events import (
    ERASED,
    EmailReceived,
    EmailUpdated,
    MessageSent,
    RequestAnswered,
    SubjectForgotten,
)
from eventstore.keys import Key, Keyring, new_key
from eventstore.subjects import digest_of
from projections.emails import EMAILS
from service import commands as do

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from eventstore.connection import Connection
    from eventstore.events import AnyEvent
    from eventstore.recorded import Recorded
    from service.memory.state import State
    from service.requests import Request, Ticket

MAX_CACHED_SENDER_KEYS = 10_000
"""How many senders' keys the writer caches."""

MAX_NEW_KEYS = 500
"""How many message keys are created at once, at most, in a process that sends many."""

_MIN_NEW_KEYS = 16
_NONCES_PER_DRAW = 64
_NOTHING: Mapping[str, str] = MappingProxyType({})
_SENDER_COMMANDS = frozenset({do.LogEmail, do.UpdateEmail})


class Sealer:
    """Seals the events of one batch. Pure: keys and sources of randomness are passed in."""

    def __init__(
        self,
        senders: dict[str, Key],
        key_pool: list[Key],
        nonces: Iterator[bytes] | None = None,
        generate_key: Callable[[], Key] = new_key,
    ) -> None:
        self.used: list[Key] = []
        """Message keys that sealed something."""
        self.unstored: list[Key] = []
        """Those of them that did not come from the pool and are not durable yet."""
        self.senders = senders
        """Senders' keys by digest of their address."""
        self._key_pool = key_pool
        self._nonces = nonces or _random_nonces()
        self._generate_key = generate_key
        self._message_key: Key | None = None

    def key_of(self, state: State, event: AnyEvent) -> Key | None:
        """Return the key that an event is sealed with; None if nothing in it is personal."""
        match event:
            case MessageSent():
                self._message_key = self._take_key()
                return self._message_key
            case EmailReceived():
                return self.senders[digest_of(event.from_email)]
            case EmailUpdated() if event.payload is not None:
                return self._sender_of(state, event.email_id)
            case _:
                return None

    def key_of_answer(self, state: State, command: do.AnyCommand) -> Key | None:
        """Return the key that the kept answer to a command is sealed with: that of the data it repeats."""
        match command:
            case do.SendMessage():
                return self._message_key
            case do.LogEmail():
                return self.senders[digest_of(command.from_email)]
            case do.UpdateEmail():
                return self._sender_of(state, command.email_id)
            case _:
                return None

    def seal(self, event: AnyEvent, id_: str, key: Key, bare_fingerprint: str = "") -> str:
        """Return the event's sealed text. A kept answer shows `bare_fingerprint` in plain text."""
        replacements = {"fingerprint": bare_fingerprint} if isinstance(event, RequestAnswered) else _NOTHING
        return sealing.seal(event, id_, key, next(self._nonces), replacements)

    def _take_key(self) -> Key:
        if self._key_pool:
            key = self._key_pool.pop()
        else:
            key = self._generate_key()
            self.unstored.append(key)
        self.used.append(key)
        return key

    def _sender_of(self, state: State, email_id: str) -> Key | None:
        row = state.rows(EMAILS).get(email_id)
        if row is None or row.from_email == ERASED:
            return None
        return self.senders[digest_of(row.from_email)]


def _random_nonces() -> Iterator[bytes]:
    """Draw many nonces from one system call, which costs as much as sealing does."""
    size = sealing.NONCE_BYTES
    while True:
        random = urandom(size * _NONCES_PER_DRAW)
        yield from (random[start : start + size] for start in range(0, len(random), size))


class Sealing:
    """What the writer of this process seals with: cached keys, and the pool."""

    def __init__(self, keyring: Keyring, *, encrypt: bool) -> None:
        self.keyring = keyring
        self._encrypt = encrypt
        self._senders: OrderedDict[str, Key] = OrderedDict()
        self._key_pool: list[Key] = []
        self._new_key_count = _MIN_NEW_KEYS

    async def replenish(self, connection: Connection, tickets: Iterable[Ticket]) -> None:
        """Create keys for the messages that these commands will send, and for some later ones."""
        if not self._encrypt:
            return
        required = sum(isinstance(ticket.request.command, do.SendMessage) for ticket in tickets)
        if len(self._key_pool) >= required:
            return
        made = keys.new_keys(max(required - len(self._key_pool), self._new_key_count))
        await keys.store(connection, made)
        self._key_pool += made
        self._new_key_count = min(self._new_key_count * 2, MAX_NEW_KEYS)

    async def prepare(
        self,
        connection: Connection,
        state: State,
        tickets: Sequence[Ticket],
        answered: Container[str],
    ) -> Sealer | None:
        """Return the sealer for a batch; None if payloads are stored in plain text.

        Args:
            connection: used to create or look up the senders' keys.
            state: what the batch will be decided on, with what the commands need recalled into it.
            tickets: the commands.
            answered: idempotency keys of commands that will not be decided again.
        """
        if not self._encrypt:
            return None
        required = required_senders(state, tickets, answered)
        cached = {digest: key for digest in required if (key := self._senders.get(digest))}
        if missing := required - cached.keys():
            cached |= await keys.get_or_create_sender_keys(connection, missing)
        return Sealer(cached, self._key_pool)

    def prepare_from_cache(
        self, sealer: Sealer | None, state: State, tickets: Sequence[Ticket]
    ) -> Sealer | None:
        """Return the sealer for a batch that is decided without the database.

        Args:
            sealer: that of what was already decided on the same draft, if any.
            state: see `prepare`.
            tickets: commands that lack no keys (`lacks_keys`).
        """
        if not self._encrypt:
            return None
        sealer = sealer or Sealer({}, self._key_pool)
        for digest in required_senders(state, tickets):
            sealer.senders[digest] = self._senders[digest]
        return sealer

    def lacks_keys(self, state: State, tickets: Iterable[Ticket]) -> bool:
        """Whether one of these commands needs a sender's key that is not cached."""
        return self._encrypt and not required_senders(state, tickets) <= self._senders.keys()

    async def store_keys(self, connection: Connection, sealer: Sealer | None) -> None:
        """Store the keys that did not come from the pool, before the batch is appended."""
        if sealer and sealer.unstored:
            await keys.store(connection, sealer.unstored)

    def settle(self, sealer: Sealer | None) -> None:
        """Cache the keys of a committed batch, which are durable now, also for reading it back.

        Not earlier: a sender's key may have been created in the transaction that appended the batch.
        """
        if sealer is None:
            return
        self.keyring.put((*sealer.used, *sealer.senders.values()))
        for digest, key in sealer.senders.items():
            self._senders[digest] = key
            self._senders.move_to_end(digest)
        while len(self._senders) > MAX_CACHED_SENDER_KEYS:
            self._senders.popitem(last=False)

    def observe(self, page: Iterable[Recorded]) -> None:
        """Drop the keys that these events destroyed."""
        for recorded in page:
            if recorded.type == SubjectForgotten.type:
                self._evict(orjson.loads(recorded.data)["key_id"])

    def reset(self) -> None:
        """Drop everything: a new connection may lead to a database without these keys."""
        self.keyring.clear()
        self._senders.clear()
        self._key_pool = []

    def _evict(self, key_id: str) -> None:
        self.keyring.remove(key_id)
        for digest in [digest for digest, key in self._senders.items() if key.id == key_id]:
            del self._senders[digest]


def required_senders(state: State, tickets: Iterable[Ticket], answered: Container[str] = ()) -> set[str]:
    """Return the digests of the senders whose keys these commands will need; arguments as for `prepare`."""
    return {
        digest_of(from_email)
        for ticket in tickets
        if type(ticket.request.command) in _SENDER_COMMANDS
        and ticket.request.idempotency_key not in answered
        and (from_email := _sender_to_seal(state, ticket.request))
    }


def _sender_to_seal(state: State, request: Request) -> str | None:
    """Return the sender whose key a command will need; none for a command that will be refused."""
    match command := request.command:
        case do.LogEmail():
            return None if state.email_with(command.gmail_message_id) else command.from_email
        case do.UpdateEmail():
            row = state.rows(EMAILS).get(command.email_id)
            if row is None or row.from_email == ERASED:
                return None
            keeps_payload = command.changes.get("payload", row.payload) is not None
            return row.from_email if keeps_payload or request.idempotency_key else None
        case _:
            return None
