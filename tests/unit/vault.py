"""The keys of sealed events, kept in memory as the database would keep them."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import orjson

from eventstore import sealing
from eventstore.events import MessageSent, SubjectForgotten
from eventstore.keys import KEY_BYTES, Key
from eventstore.subjects import NO_TRACE, Trace, digest_of
from service.writing.sealer import Sealer, required_senders

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from eventstore.recorded import Recorded
    from service.memory.state import State
    from service.requests import Ticket


class Vault:
    """The keys of a story. Ids, secrets and nonces are consecutive numbers."""

    def __init__(self) -> None:
        self.senders: dict[str, Key] = {}
        self.secrets: dict[str, bytes] = {}
        """The keys that exist, by id. What they sealed can be read."""
        self._numbers = count(1)

    def sealer(self, state: State, tickets: Sequence[Ticket], answered: Container[str]) -> Sealer:
        """The sealer of a batch."""
        for digest in required_senders(state, tickets, answered):
            if digest not in self.senders:
                self.senders[digest] = self._new_key()
        return Sealer(dict(self.senders), [], self._nonces(), self._new_key)

    def destroy_forgotten(self, recorded: Iterable[Recorded]) -> None:
        """Destroy the keys that these events say are destroyed."""
        for row in recorded:
            if row.type == SubjectForgotten.type:
                key_id = orjson.loads(row.data)["key_id"]
                self.secrets.pop(key_id, None)
                self.senders = {digest: key for digest, key in self.senders.items() if key.id != key_id}

    def reveal(self, log: Iterable[Recorded]) -> list[Recorded]:
        """The events as they can be read now."""
        return [sealing.reveal_event(recorded, self.secrets) for recorded in log]

    def trace(self, log: Sequence[Recorded], subject: str) -> Trace:
        """What the log holds of a subject: what `eventstore.traces` finds out by SQL."""
        for row in log:
            if row.stream == f"message-{subject}" and row.type == MessageSent.type:
                key_id = sealing.key_of(row)
                known = key_id if key_id in self.secrets else None
                ends = [
                    row.position
                    for row in log
                    if key_id and row.stream == SubjectForgotten.stream_of(key_id)
                ]
                return Trace(
                    known,
                    message=subject,
                    in_plain=key_id is None,
                    forgotten_at=max(ends) if ends else None,
                )
        if key := self.senders.get(digest_of(subject)):
            emails = {
                row.stream for row in log if row.type.startswith("email_") and sealing.key_of(row) == key.id
            }
            return Trace(key.id, tuple(sorted(stream.removeprefix("email-") for stream in emails)))
        return NO_TRACE

    def _new_key(self) -> Key:
        number = next(self._numbers)
        key = Key(f"00000000-0000-7000-9000-{number:012x}", number.to_bytes(KEY_BYTES, "big"))
        self.secrets[key.id] = key.secret
        return key

    def _nonces(self) -> Iterator[bytes]:
        while True:
            yield next(self._numbers).to_bytes(sealing.NONCE_BYTES, "big")
