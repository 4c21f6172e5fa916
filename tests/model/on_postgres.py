"""A real Postgres in place of the lists: every process's words are sent to it in a real session.

Its clock cannot be set, so when time passes in the model, the clocks of all processes become wrong.
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

    keeps_keys = False
    """A session that waits for another's key would block the whole model."""

    def __init__(self, stack: ExitStack, postgres: PostgresServer, template: str) -> None:
        self._skipped_seconds = 0.0
        self._loop = asyncio.new_event_loop()
        self._open: set[_RealSession] = set()
        self._resources = stack.enter_context(ExitStack())
        self._resources.callback(self._loop.close)
        self._dsn = self._resources.enter_context(postgres.new_database(template=template))
        self._watching = self._run(connect(self._dsn, "squad", name="squad test"))
        self._resources.callback(self._hang_up)
        super().__init__()

    @property
    def now(self) -> datetime:
        """The server's clock."""
        return self._run(log.clock(self._watching))

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
        if not session.is_over:
            self._run(session.connection.rollback())

    def reveal(self, recorded: Sequence[Recorded]) -> list[Recorded]:
        """The events, decrypted with the keys that exist now."""
        return self._run(sealing.reveal(self._watching, recorded))

    def put_away(self, squad: Squad) -> None:
        """Store a snapshot, unless the log is locked."""
        if self.holder is None:
            self._run(snapshots.store(self._watching, squad, squad.head.position))

    def close(self) -> None:
        """Drop the database."""
        self._resources.close()

    def _do(self, session: Session, word: Statement) -> list[Rows]:
        assert isinstance(session, _RealSession)
        answer = self._run(_said(session.connection, word))
        if "append_events(" in word.query:
            self._keep(self._run(log.read_after(self._watching, len(self.log), 1_000)))
        return answer

    def _hang_up(self) -> None:
        for session in list(self._open):
            self.end(session)
        self._run(self._watching.close())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        # A process may call this from within its own loop.
        outside = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            return self._loop.run_until_complete(work)
        finally:
            asyncio._set_running_loop(outside)


async def _said(connection: Connection, word: Statement) -> list[Rows]:
    if word.query == "ROLLBACK":
        await connection.rollback()
        return [[]]
    cursor: AsyncCursor[Any]
    cursor = AsyncClientCursor(connection) if word.is_simple else AsyncCursor(connection)
    await cursor.execute(word.query.encode(), word.parameters, binary=word.is_binary or None)
    sets: list[Rows] = []
    while True:
        sets.append(await cursor.fetchall() if cursor.description else [])
        if not cursor.nextset():
            return sets
