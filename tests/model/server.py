"""A stand-in for Postgres, as far as the writer's protocol needs one: a log, a lock, a clock, and sessions.

It promises what the real one does (`append_events` and `lock_log` in schema.sql) and no more: a request is
carried out whole or not at all, the lock is held by one session until its transaction ends, and what a
client believes about its connection means nothing to the server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore import codec
from eventstore.errors import ClockDrifted, HeadMoved, StoreRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventstore.recorded import Recorded
    from service.recall import Needs

DRIFT = timedelta(seconds=1)
ROUND_TRIP = timedelta(milliseconds=1)
PAGE_EVENTS = 7
"""So few that reading takes several pages."""

_NEED_THE_LOCK = ("lock_and_read", "append")


class Blocked(Exception):
    """Another session holds the lock; the request waits."""


class Word(NamedTuple):
    """What a client says to the server."""

    what: str
    arguments: tuple[Any, ...] = ()


class Session:
    """The server's end of a connection."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.is_over = False


class Server(ABC):
    """The database, as the simulation deals with it. All that reaches it comes through here, one by one."""

    def __init__(self) -> None:
        self.log: list[Recorded] = []
        self.append_of: list[int] = []
        """Which append each event came with."""
        self.holder: Session | None = None
        """Who holds the log's lock."""

    def carry_out(self, session: Session, word: Word) -> Any:
        """Does what a client asks for, now.

        Raises:
            Blocked: not yet.
            EventStoreError: it cannot be done, or not like that.
        """
        assert not session.is_over
        if word.what in _NEED_THE_LOCK and self.holder not in (None, session):
            raise Blocked
        if word.what == "lock_and_read":
            self.holder = session
        try:
            return self._do(session, word)
        finally:
            if word.what in ("append", "rollback") and self.holder is session:
                self.holder = None

    def end(self, session: Session) -> None:
        """A session is over: what it had not committed has not happened, and its lock is free."""
        session.is_over = True
        if self.holder is session:
            self.holder = None

    def keep(self, batch: Sequence[Recorded]) -> None:
        """Takes note of what was appended."""
        number = self.append_of[-1] + 1 if self.append_of else 0
        self.log += batch
        self.append_of += [number] * len(batch)

    @property
    @abstractmethod
    def now(self) -> datetime:
        """Its clock."""

    @abstractmethod
    def monotonic(self) -> float:
        """Seconds that have passed, to anybody who is awake."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Time passes."""

    @abstractmethod
    def open(self, client: str) -> Session:
        """A client connects."""

    @abstractmethod
    def _do(self, session: Session, word: Word) -> Any: ...

    @abstractmethod
    def close(self) -> None:
        """It is not needed any more."""


class Simulated(Server):
    """A list, and a clock that stands still but for what passes."""

    def __init__(self, now: datetime) -> None:
        super().__init__()
        self._began = self._now = now
        self._ids: dict[str, int] = {}
        self._versions: dict[str, int] = defaultdict(int)
        self._keys: set[str] = set()
        self._gmail_ids: set[str] = set()

    @property
    def now(self) -> datetime:
        """Its clock."""
        return self._now

    def monotonic(self) -> float:
        """Seconds that have passed."""
        return (self._now - self._began).total_seconds()

    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self._now += timedelta(seconds=seconds)

    def open(self, client: str) -> Session:
        """A client connects."""
        return Session(client)

    def close(self) -> None:
        """Nothing is left of it."""

    def _do(self, session: Session, word: Word) -> Any:
        del session
        self._now += ROUND_TRIP
        answer = getattr(self, f"_{word.what}")
        return answer(*word.arguments)

    # what clients say ---------------------------------------------------------------------------------

    def _rollback(self) -> None:
        pass

    def _clock(self) -> datetime:
        return self._now

    def _head_position(self) -> int:
        return len(self.log)

    def _read_one(self, position: int) -> Recorded | None:
        return self.log[position - 1] if position <= len(self.log) else None

    def _read_after(self, position: int, limit: int) -> list[Recorded]:
        return self.log[position : position + limit]

    def _lock_and_read(self, position: int) -> tuple[list[Recorded], datetime]:
        return self.log[position : position + PAGE_EVENTS], self._now

    def _find_ids(self, ids: Sequence[str]) -> dict[str, int]:
        return {id_: self._ids[id_] for id_ in ids if id_ in self._ids}

    def _recall(self, wanted: Needs) -> list[Recorded]:
        names = set(wanted.streams)
        for recorded in self.log if wanted.gmail_message_ids else ():
            if _gmail_id(recorded) in wanted.gmail_message_ids:
                names.add(recorded.stream)
        return [recorded for recorded in self.log if recorded.stream in names]

    def _append(self, batch: Sequence[Recorded], decided_at: datetime, commit: bool) -> datetime:
        del commit
        expected, head = batch[0].position - 1, len(self.log)
        if head != expected:
            raise HeadMoved(head)
        if abs(self._now - decided_at) > DRIFT:
            raise ClockDrifted(f"{self._now} {decided_at}")
        self._check_unique(batch)
        self._store(batch)
        return self._now

    def _check_unique(self, batch: Sequence[Recorded]) -> None:
        versions = dict[str, int]()
        keys, gmail_ids = set(self._keys), set(self._gmail_ids)
        for recorded in batch:
            version = versions.get(recorded.stream, self._versions[recorded.stream]) + 1
            gmail_id = _gmail_id(recorded)
            if recorded.id in self._ids or recorded.version != version:
                raise StoreRefused(f"{recorded.stream} has a version {recorded.version}")
            if recorded.idempotency_key in keys or gmail_id in gmail_ids:
                raise StoreRefused(f"{recorded.idempotency_key or gmail_id} is there")
            versions[recorded.stream] = version
            keys |= {recorded.idempotency_key} - {None}  # type: ignore[arg-type]
            gmail_ids |= {gmail_id} - {None}  # type: ignore[arg-type]

    def _store(self, batch: Sequence[Recorded]) -> None:
        self.keep(batch)
        for recorded in batch:
            self._ids[recorded.id] = recorded.position
            self._versions[recorded.stream] = recorded.version
            if recorded.idempotency_key:
                self._keys.add(recorded.idempotency_key)
            if gmail_id := _gmail_id(recorded):
                self._gmail_ids.add(gmail_id)


def _gmail_id(recorded: Recorded) -> str | None:
    if recorded.type != "email_received":
        return None
    return getattr(codec.decode(recorded), "gmail_message_id", None)
