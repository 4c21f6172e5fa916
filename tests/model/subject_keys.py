"""The encryption keys of the in-memory stand-in for Postgres, and the queries on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore import keys, sealing, traces
from eventstore.events import EmailReceived, EmailUpdated, MessageSent, SubjectForgotten
from tests.model.events_table import EventsTable
from tests.model.server import Blocked, Server, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.fake_connection import Rows

_NO_ROWS: Rows = []


class _Key:
    """A row of subject_keys; if it has an owner, it is not committed."""

    def __init__(self, subject: str | None, secret: bytes, owner: Session | None) -> None:
        self.subject, self.secret, self.owner = subject, secret, owner


class ServerWithKeys(Server):
    """A server with the table `subject_keys`."""

    def __init__(self) -> None:
        super().__init__()
        self.events = EventsTable(self.log)
        self._keys: dict[str, _Key] = {}

    def secrets(self) -> dict[str, bytes]:
        """All keys, by id."""
        return {id_: key.secret for id_, key in self._keys.items()}

    def destroy_key(self, key_id: str) -> None:
        """Remove a key."""
        self._keys.pop(key_id, None)

    def commit_keys_of(self, session: Session) -> None:
        """Make the keys of a session visible to all."""
        for key in self._keys.values():
            if key.owner is session:
                key.owner = None

    def discard_keys_of(self, session: Session) -> None:
        """Remove the uncommitted keys of a session."""
        self._keys = {id_: key for id_, key in self._keys.items() if key.owner is not session}

    def _visible_keys(self, session: Session) -> dict[str, _Key]:
        return {id_: key for id_, key in self._keys.items() if key.owner in (None, session)}

    def _owner(self, session: Session) -> Session | None:
        """The owner of new keys: the session, if it is in a transaction."""
        return session if self.holder is session else None

    def _store_keys(self, session: Session, secrets: bytes, ids: str) -> list[Rows]:
        for number, id_ in enumerate(ids.split(",")):
            secret = secrets[number * keys.KEY_BYTES : (number + 1) * keys.KEY_BYTES]
            self._keys[id_] = _Key(None, secret, self._owner(session))
        return [_NO_ROWS]

    def _make_keys(
        self, session: Session, ids: list[str], subjects: list[str], secrets: list[bytes]
    ) -> list[Rows]:
        known = {key.subject: key.owner for key in self._keys.values() if key.subject}
        if any(known.get(subject) not in (None, session) for subject in subjects):
            # Another session has inserted one and has not committed yet.
            raise Blocked
        inserted: Rows = []
        for id_, subject, secret in zip(ids, subjects, secrets, strict=True):
            if subject not in known:
                self._keys[id_] = _Key(subject, secret, self._owner(session))
                inserted.append((subject,))
        return [inserted]

    def _keys_of(self, session: Session, subjects: list[str]) -> list[Rows]:
        found = self._visible_keys(session).items()
        return [[(key.subject, id_, key.secret) for id_, key in found if key.subject in subjects]]

    def _load_keys(self, session: Session, ids: list[str]) -> list[Rows]:
        found = self._visible_keys(session)
        return [[(id_, found[id_].secret) for id_ in ids if id_ in found]]

    def _key_of_message(self, _: Session, stream: str) -> list[Rows]:
        sent = [one for one in self.events.of_streams([stream]) if one.type == MessageSent.type]
        return [[(sealing.key_of(sent[0]),)] if sent else []]

    def _key_state(self, session: Session, key_id: str) -> list[Rows]:
        existing = key_id if key_id in self._visible_keys(session) else None
        ends = self.events.of_streams([SubjectForgotten.stream_of(key_id)])
        return [[(existing, ends[-1].position if ends else None)]]

    def _key_of_sender(self, session: Session, subject: str) -> list[Rows]:
        return [[(id_,) for id_, key in self._visible_keys(session).items() if key.subject == subject]]

    def _emails_encrypted_with(self, _: Session, key_id: str) -> list[Rows]:
        kinds = (EmailReceived.type, EmailUpdated.type)
        found = {one.stream for one in self.log if one.type in kinds and sealing.key_of(one) == key_id}
        return [[(stream,) for stream in sorted(found)]]


KEY_STATEMENTS: dict[str, Callable[..., list[Rows]]] = {
    keys._STORE: ServerWithKeys._store_keys,
    keys._MAKE: ServerWithKeys._make_keys,
    keys._OF_SUBJECTS: ServerWithKeys._keys_of,
    keys._LOAD: ServerWithKeys._load_keys,
    traces._MESSAGE: ServerWithKeys._key_of_message,
    traces._KEY_STATE: ServerWithKeys._key_state,
    traces._KEY_OF_SENDER: ServerWithKeys._key_of_sender,
    traces._SEALED_WITH: ServerWithKeys._emails_encrypted_with,
}
