"""Which payloads are sealed with whose key, when this process encrypts what it appends.

Keys are durable before the batch that uses them. A sender's is made, or found, before the batch is decided;
of messages' keys there is a stock, so that not every batch has to wait for another commit. What goes into a
batch that is not appended is lost, and harms nobody: a key that sealed nothing is only a row.

No event is sealed with a key that was destroyed. A key is destroyed by an event; whoever has not folded
that event yet decides at a head that has moved, and decides again; whoever has folded it has let go of the
key.
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

KNOWN_SENDERS = 10_000
"""How many senders' keys the writer keeps at hand."""

LARGEST_LOT = 500
"""How many keys of messages are made at once, in a process that sends many."""

_SMALLEST_LOT = 16
_NONCES_AT_ONCE = 64
_NOTHING: Mapping[str, str] = MappingProxyType({})
_ABOUT_SENDERS = frozenset({do.LogEmail, do.UpdateEmail})


class Sealer:
    """Seals the events of one batch. Pure: keys are given, and randomness comes in as a function."""

    def __init__(
        self,
        senders: dict[str, Key],
        stock: list[Key],
        nonces: Iterator[bytes] | None = None,
        fresh: Callable[[], Key] = new_key,
    ) -> None:
        self.used: list[Key] = []
        """Messages' keys that something was sealed with."""
        self.late: list[Key] = []
        """Those of them that came from no stock: they are yet to be made durable."""
        self.senders = senders
        """Senders' keys by their digests."""
        self._stock = stock
        self._nonces = nonces or _random_nonces()
        self._fresh = fresh
        self._message_key: Key | None = None

    def key_of(self, state: State, event: AnyEvent) -> Key | None:
        """Whose key an event is sealed with; None where nothing in it is personal."""
        match event:
            case MessageSent():
                self._message_key = self._take()
                return self._message_key
            case EmailReceived():
                return self.senders[digest_of(event.from_email)]
            case EmailUpdated() if event.payload is not None:
                return self._sender_of(state, event.email_id)
            case _:
                return None

    def key_of_answer(self, state: State, command: do.AnyCommand) -> Key | None:
        """Whose key the kept answer to a command is sealed with: that of what it repeats."""
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
        """The event's stored text. `bare_fingerprint` stands in the open where it is a kept answer."""
        instead = {"fingerprint": bare_fingerprint} if isinstance(event, RequestAnswered) else _NOTHING
        return sealing.seal(event, id_, key, next(self._nonces), instead)

    def _take(self) -> Key:
        if self._stock:
            key = self._stock.pop()
        else:
            key = self._fresh()
            self.late.append(key)
        self.used.append(key)
        return key

    def _sender_of(self, state: State, email_id: str) -> Key | None:
        row = state.rows(EMAILS).get(email_id)
        if row is None or row.from_email == ERASED:
            return None
        return self.senders[digest_of(row.from_email)]


def _random_nonces() -> Iterator[bytes]:
    """Many of them from one call of the system, which costs as much as sealing does."""
    size = sealing.NONCE_BYTES
    while True:
        random = urandom(size * _NONCES_AT_ONCE)
        yield from (random[start : start + size] for start in range(0, len(random), size))


class Sealing:
    """What the writer of this process seals with: keys at hand, and the stock."""

    def __init__(self, keyring: Keyring, *, encrypt: bool) -> None:
        self.keyring = keyring
        self._encrypt = encrypt
        self._senders: OrderedDict[str, Key] = OrderedDict()
        self._stock: list[Key] = []
        self._lot = _SMALLEST_LOT

    async def stock_up(self, connection: Connection, tickets: Iterable[Ticket]) -> None:
        """Makes keys for the messages that these commands are going to send, and for some to come."""
        if not self._encrypt:
            return
        wanted = sum(isinstance(ticket.request.command, do.SendMessage) for ticket in tickets)
        if len(self._stock) >= wanted:
            return
        made = keys.new_keys(max(wanted - len(self._stock), self._lot))
        await keys.store(connection, made)
        self._stock += made
        self._lot = min(self._lot * 2, LARGEST_LOT)

    async def prepare(
        self,
        connection: Connection,
        state: State,
        tickets: Sequence[Ticket],
        answered: Container[str],
    ) -> Sealer | None:
        """What a batch seals with, given the state that it will be decided on; None for a plain one.

        Args:
            connection: to make, or find, the senders' keys.
            state: with what the commands need recalled into it.
            tickets: the commands.
            answered: idempotency keys of commands that will not be decided again.
        """
        if not self._encrypt:
            return None
        wanted = senders_needed(state, tickets, answered)
        at_hand = {digest: key for digest in wanted if (key := self._senders.get(digest))}
        if missing := wanted - at_hand.keys():
            at_hand |= await keys.of_senders(connection, missing)
        return Sealer(at_hand, self._stock)

    def ahead(self, sealer: Sealer | None, state: State, tickets: Sequence[Ticket]) -> Sealer | None:
        """What a batch seals with that is decided without the database; arguments as for `prepare`.

        Args:
            sealer: of what was decided on the same draft before, where something was.
            state: see `prepare`.
            tickets: commands that lack no keys (`lacks_keys`).
        """
        if not self._encrypt:
            return None
        sealer = sealer or Sealer({}, self._stock)
        for digest in senders_needed(state, tickets):
            sealer.senders[digest] = self._senders[digest]
        return sealer

    def lacks_keys(self, state: State, tickets: Iterable[Ticket]) -> bool:
        """Whether one of these commands needs a sender's key that is not at hand."""
        return self._encrypt and not senders_needed(state, tickets) <= self._senders.keys()

    async def make_durable(self, connection: Connection, sealer: Sealer | None) -> None:
        """Makes the keys durable that a batch took from no stock: before the batch is appended."""
        if sealer and sealer.late:
            await keys.store(connection, sealer.late)

    def settle(self, sealer: Sealer | None) -> None:
        """The batch is in the log, and so its keys are durable: they are kept at hand, also to read it.

        Not before: a sender's key can have been made in the transaction that appended the batch.
        """
        if sealer is None:
            return
        self.keyring.put((*sealer.used, *sealer.senders.values()))
        for digest, key in sealer.senders.items():
            self._senders[digest] = key
            self._senders.move_to_end(digest)
        while len(self._senders) > KNOWN_SENDERS:
            self._senders.popitem(last=False)

    def observe(self, page: Iterable[Recorded]) -> None:
        """Lets go of keys that were destroyed."""
        for recorded in page:
            if recorded.type == SubjectForgotten.type:
                self._let_go(orjson.loads(recorded.data)["key_id"])

    def start_afresh(self) -> None:
        """Lets go of everything: what answers on a new connection may be a database without these keys."""
        self.keyring.clear()
        self._senders.clear()
        self._stock = []

    def _let_go(self, key_id: str) -> None:
        self.keyring.let_go(key_id)
        for digest in [digest for digest, key in self._senders.items() if key.id == key_id]:
            del self._senders[digest]


def senders_needed(state: State, tickets: Iterable[Ticket], answered: Container[str] = ()) -> set[str]:
    """Digests of the senders whose keys these commands are going to need; arguments as for `prepare`."""
    return {
        digest_of(from_email)
        for ticket in tickets
        if type(ticket.request.command) in _ABOUT_SENDERS
        and ticket.request.idempotency_key not in answered
        and (from_email := _sender_to_seal(state, ticket.request))
    }


def _sender_to_seal(state: State, request: Request) -> str | None:
    """The sender whose key a command is going to need; none is made for what will be refused."""
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
