"""The database as the model sees it: sessions, the log's lock, and the log.

A statement is executed completely or not at all, one session holds the lock until its transaction ends, and
the server does not know whether a client has given up on its connection.
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
    """Another session blocks the statement, which has to wait."""


class Session:
    """The server's end of a connection."""

    def __init__(self) -> None:
        self.is_ended = False
        self.view: Any = None
        """What a repeatable read transaction sees."""


class Server(ABC):
    """The database, which executes statements one at a time."""

    supports_keys = True
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

    def execute(self, session: Session, statement: Statement) -> list[Rows]:
        """Execute a client's statement now.

        Raises:
            Blocked: the statement has to wait.
            psycopg.Error: the statement fails.
        """
        if session.is_ended:
            raise psycopg.OperationalError("the server has ended the session")
        if self.is_blocked(session, statement):
            raise Blocked
        try:
            answer = self._execute(session, statement)
        except psycopg.Error:
            # A failed transaction has released its lock.
            self._release_lock(session)
            raise
        if statement.query.rstrip().endswith(("COMMIT", "ROLLBACK")):
            self._release_lock(session)
        elif statement.query.startswith(_LOCKS):
            self.holder, self._held_since = session, self.monotonic()
        self.latest = max(self.latest, self.now)
        return answer

    def is_blocked(self, session: Session, statement: Statement) -> bool:
        """Whether another session holds the lock that a statement needs."""
        needs_lock = statement.query.startswith(_LOCKS) or "append_events(" in statement.query
        return needs_lock and self.holder not in (None, session)

    def end(self, session: Session) -> None:
        """End a session: what it has not committed is rolled back, and its lock released."""
        session.is_ended = True
        self._release_lock(session)

    def abort(self, session: Session) -> None:
        """Fail a session's transaction."""
        self._release_lock(session)

    def end_idle_transaction(self) -> None:
        """End the session that has held the lock for longer than the idle timeout."""
        if self.holder and self.monotonic() - self._held_since > IDLE_IN_TRANSACTION_SECONDS:
            self.end(self.holder)

    def _release_lock(self, session: Session) -> None:
        if self.holder is session:
            self.holder = None

    def _append_to_log(self, batch: Sequence[Recorded]) -> None:
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
    def store_snapshot(self, squad: Squad) -> None:
        """Store a snapshot."""

    @abstractmethod
    def close(self) -> None:
        """Release its resources."""

    @abstractmethod
    def _execute(self, session: Session, statement: Statement) -> list[Rows]: ...
