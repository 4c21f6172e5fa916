"""The database as the model deals with it: sessions, the log's lock, and what has been appended.

A request is carried out whole or not at all, one session holds the lock until its transaction ends, and
what a client believes about its connection means nothing to the server.
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
    from tests.model.line import Rows, Word

IDLE_IN_TRANSACTION_SECONDS = 10.0
_LOCKS = "BEGIN; SELECT lock_log()"


class Blocked(Exception):
    """Another session is in the way; the request waits."""


class Session:
    """The server's end of a connection."""

    def __init__(self) -> None:
        self.is_over = False
        self.view: Any = None
        """What a transaction that reads at one moment sees."""


class Server(ABC):
    """All that reaches the database comes through here, one by one."""

    keeps_keys = True
    """Whether processes may encrypt here."""

    def __init__(self) -> None:
        self.log: list[Recorded] = []
        """As it is stored."""
        self.append_of: list[int] = []
        """Which append each event came with."""
        self.notifications: list[int] = []
        self.holder: Session | None = None
        """Who holds the log's lock."""
        self.latest: datetime = self.now
        """The latest time that its clock has shown."""
        self._held_since = 0.0

    def carry_out(self, session: Session, word: Word) -> list[Rows]:
        """Does what a client asks for, now.

        Raises:
            Blocked: not yet.
            psycopg.Error: it cannot be done, or not like that.
        """
        if session.is_over:
            raise psycopg.OperationalError("the server has ended the session")
        if self.is_in_the_way(session, word):
            raise Blocked
        try:
            answer = self._do(session, word)
        except psycopg.Error:
            # A transaction that failed has given back its lock.
            self._let_go(session)
            raise
        if word.query.rstrip().endswith(("COMMIT", "ROLLBACK")):
            self._let_go(session)
        elif word.query.startswith(_LOCKS):
            self.holder, self._held_since = session, self.monotonic()
        self.latest = max(self.latest, self.now)
        return answer

    def is_in_the_way(self, session: Session, word: Word) -> bool:
        """Whether another session has the lock that a word needs."""
        needs_lock = word.query.startswith(_LOCKS) or "append_events(" in word.query
        return needs_lock and self.holder not in (None, session)

    def end(self, session: Session) -> None:
        """A session is over: what it had not committed has not happened, and its lock is free."""
        session.is_over = True
        self._let_go(session)

    def abort(self, session: Session) -> None:
        """A session's transaction fails."""
        self._let_go(session)

    def end_idle_transaction(self) -> None:
        """Ends the session that has kept the lock for too long."""
        if self.holder and self.monotonic() - self._held_since > IDLE_IN_TRANSACTION_SECONDS:
            self.end(self.holder)

    def _let_go(self, session: Session) -> None:
        if self.holder is session:
            self.holder = None

    def _keep(self, batch: Sequence[Recorded]) -> None:
        """Takes note of what was appended at once."""
        number = self.append_of[-1] + 1 if self.append_of else 0
        self.log += batch
        self.append_of += [number] * len(batch)
        self.notifications.append(len(self.log))

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

    def step_clock(self, seconds: float) -> None:  # noqa: B027 - not every server's clock can be set
        """Its clock is set, and no time passes."""

    @abstractmethod
    def open(self) -> Session:
        """A client connects."""

    @abstractmethod
    def reveal(self, recorded: Sequence[Recorded]) -> list[Recorded]:
        """Events as they can be read now."""

    def project(self, behind: int, stopped: int | None) -> None:  # noqa: B027 - a real one has a projector
        """The read tables are brought to so many events behind the log's end, but for one that stopped."""

    @abstractmethod
    def put_away(self, squad: Squad) -> None:
        """Keeps a snapshot."""

    @abstractmethod
    def close(self) -> None:
        """It is not needed any more."""

    @abstractmethod
    def _do(self, session: Session, word: Word) -> list[Rows]: ...
