"""The database as the model sees it: sessions, the log's lock, and what has been appended.

A request is carried out completely or not at all, one session holds the lock until its transaction ends,
and the server does not know what a client believes about its connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from eventstore.recorded import Recorded
    from service.memory.squad import Squad
    from tests.model.fake_connection import Rows, Statement

IDLE_IN_TRANSACTION_SECONDS = 10.0
_LOCKS = "BEGIN; SELECT lock_log()"


class Blocked(Exception):
    """Another session blocks the request, which has to wait."""


class Session:
    """The server's end of a connection."""

    def __init__(self) -> None:
        self.is_over = False
        self.view: Any = None
        """The snapshot that a repeatable read transaction sees."""


class Server(ABC):
    """The database, which carries out requests one by one."""

    keeps_keys = True
    """Whether processes may encrypt."""

    def __init__(self) -> None:
        self.log: list[Recorded] = []
        """The events as stored."""
        self.append_of: list[int] = []
        """The number of each event's append."""
        self.notifications: list[int] = []
        self.holder: Session | None = None
        """The session that holds the log's lock."""
        self.latest: datetime = self.now
        """The latest time that the clock has shown."""
        self._held_since = 0.0

    def carry_out(self, session: Session, word: Statement) -> list[Rows]:
        """Carry out a client's request now.

        Raises:
            Blocked: it has to wait.
            psycopg.Error: the request fails.
        """
        if session.is_over:
            raise psycopg.OperationalError("the server has ended the session")
        if self.is_in_the_way(session, word):
            raise Blocked
        try:
            answer = self._do(session, word)
        except psycopg.Error:
            # A failed transaction has released its lock.
            self._release_lock(session)
            raise
        if word.query.rstrip().endswith(("COMMIT", "ROLLBACK")):
            self._release_lock(session)
        elif word.query.startswith(_LOCKS):
            self.holder, self._held_since = session, self.monotonic()
        self.latest = max(self.latest, self.now)
        return answer

    def is_in_the_way(self, session: Session, word: Statement) -> bool:
        """Whether another session holds the lock that a word needs."""
        needs_lock = word.query.startswith(_LOCKS) or "append_events(" in word.query
        return needs_lock and self.holder not in (None, session)

    def end(self, session: Session) -> None:
        """End a session: what it has not committed is rolled back, and its lock released."""
        session.is_over = True
        self._release_lock(session)

    def abort(self, session: Session) -> None:
        """Fail a session's transaction."""
        self._release_lock(session)

    def end_idle_transaction(self) -> None:
        """End the session that has held the lock for too long."""
        if self.holder and self.monotonic() - self._held_since > IDLE_IN_TRANSACTION_SECONDS:
            self.end(self.holder)

    def _release_lock(self, session: Session) -> None:
        if self.holder is session:
            self.holder = None

    def _keep(self, batch: Sequence[Recorded]) -> None:
        """Add the events of one append to the log."""
        number = self.append_of[-1] + 1 if self.append_of else 0
        self.log += batch
        self.append_of += [number] * len(batch)
        self.notifications.append(len(self.log))

    @property
    @abstractmethod
    def now(self) -> datetime:
        """The server's clock."""

    @abstractmethod
    def monotonic(self) -> float:
        """Elapsed seconds, as seen by processes that are not suspended."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""

    def step_clock(self, seconds: float) -> None:  # noqa: B027 - not every server's clock can be set
        """Step the server's clock, while no time passes."""

    @abstractmethod
    def open(self) -> Session:
        """Open a session for a client."""

    @abstractmethod
    def reveal(self, recorded: Sequence[Recorded]) -> list[Recorded]:
        """The events, decrypted with the keys that exist now."""

    def project(self, behind: int, stopped: int | None) -> None:  # noqa: B027 - a real one has a projector
        """Project the log into the read tables, up to `behind` events before its end, except `stopped`."""

    @abstractmethod
    def put_away(self, squad: Squad) -> None:
        """Store a snapshot."""

    @abstractmethod
    def close(self) -> None:
        """Release its resources."""

    @abstractmethod
    def _do(self, session: Session, word: Statement) -> list[Rows]: ...
