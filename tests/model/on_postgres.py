"""A real Postgres as the model's server: every statement of a process is sent to it in a real session.

Its clock cannot be set. So when time passes in the model, the clocks of all processes become wrong.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg import AsyncClientCursor, AsyncCursor

from eventstore import log, sealing
from eventstore.connection import Connection, connect
from service.history import snapshots
from tests.model.server import Server, Session

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from datetime import datetime

    from eventstore.recorded import Recorded
    from service.memory.squad import Squad
    from tests.model.fake_connection import Rows, Statement
    from tests.support.postgres import PostgresServer

T = TypeVar("T")


class _RealSession(Session):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection


class OnPostgres(Server):
    """A new database on a running server."""

    supports_keys = False
    """False, because a session that waits for another one's key would block the whole model."""

    def __init__(self, stack: ExitStack, postgres: PostgresServer, template: str) -> None:
        self._skipped_seconds = 0.0
        self._loop = asyncio.new_event_loop()
        self._open: set[_RealSession] = set()
        self._resources = stack.enter_context(ExitStack())
        self._resources.callback(self._loop.close)
        self._dsn = self._resources.enter_context(postgres.new_database(template=template))
        self._observer = self._run(connect(self._dsn, "squad", name="squad test"))
        self._resources.callback(self._disconnect)
        super().__init__()

    @property
    def now(self) -> datetime:
        """The server's clock."""
        return self._run(log.clock(self._observer))

    def monotonic(self) -> float:
        """Elapsed seconds."""
        return monotonic() + self._skipped_seconds

    def pass_time(self, seconds: float) -> None:
        """Let time pass for the processes, which soon detect that they are ahead of the server's clock."""
        self._skipped_seconds += seconds
        self.end_idle_transaction()

    def open(self) -> Session:
        """Open a session for a client."""
        session = _RealSession(self._run(connect(self._dsn, "squad", name="squad writer")))
        self._open.add(session)
        return session

    def end(self, session: Session) -> None:
        """End a session; the server has ended it when this returns."""
        super().end(session)
        assert isinstance(session, _RealSession)
        if session in self._open:
            self._open.remove(session)
            self._run(session.connection.close())

    def abort(self, session: Session) -> None:
        """Fail a session's transaction."""
        super().abort(session)
        assert isinstance(session, _RealSession)
        if not session.is_ended:
            self._run(session.connection.rollback())

    def reveal(self, recorded: Sequence[Recorded]) -> list[Recorded]:
        """The events, decrypted with the keys that exist now."""
        return self._run(sealing.reveal(self._observer, recorded))

    def store_snapshot(self, squad: Squad) -> None:
        """Store a snapshot, unless the log is locked."""
        if self.holder is None:
            self._run(snapshots.store(self._observer, squad, squad.head.position))

    def close(self) -> None:
        """Drop the database."""
        self._resources.close()

    def _execute(self, session: Session, statement: Statement) -> list[Rows]:
        assert isinstance(session, _RealSession)
        answer = self._run(_executed(session.connection, statement))
        if "append_events(" in statement.query:
            self._append_to_log(self._run(log.read_after(self._observer, len(self.log), 1_000)))
        return answer

    def _disconnect(self) -> None:
        for session in list(self._open):
            self.end(session)
        self._run(self._observer.close())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        # A process may call this from within its own loop.
        outside = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            return self._loop.run_until_complete(work)
        finally:
            asyncio._set_running_loop(outside)


async def _executed(connection: Connection, statement: Statement) -> list[Rows]:
    if statement.query == "ROLLBACK":
        await connection.rollback()
        return [[]]
    cursor: AsyncCursor[Any]
    cursor = AsyncClientCursor(connection) if statement.is_simple else AsyncCursor(connection)
    await cursor.execute(statement.query.encode(), statement.parameters, binary=statement.is_binary or None)
    sets: list[Rows] = []
    while True:
        sets.append(await cursor.fetchall() if cursor.description else [])
        if not cursor.nextset():
            return sets
