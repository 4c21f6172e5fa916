"""A real server in the place of the simulated one: every word is said to it, in its session."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

from eventstore import log
from eventstore.connection import Connection, connect
from service import recall
from tests.model.server import Server, Session, Word

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import datetime

    from tests.support.postgres import PostgresServer

T = TypeVar("T")

_SHORT_SECONDS = 0.005
"""Its time cannot be made to pass. What takes time in the simulation takes a moment here."""

_read_what_is_recalled = recall.read


class _RealSession(Session):
    def __init__(self, client: str, connection: Connection) -> None:
        super().__init__(client)
        self.connection = connection


class OnPostgres(Server):
    """A database of its own on a running server."""

    def __init__(self, stack: ExitStack, postgres: PostgresServer, template: str) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._open: set[_RealSession] = set()
        self._resources = stack.enter_context(ExitStack())
        self._resources.callback(self._loop.close)
        self._dsn = self._resources.enter_context(postgres.new_database(template=template))
        self._watching = self._run(connect(self._dsn, "squad", name="squad test"))
        self._resources.callback(self._hang_up)

    @property
    def now(self) -> datetime:
        """Its clock."""
        told: datetime = self._run(log.clock(self._watching))
        return told

    def monotonic(self) -> float:
        """Seconds that have passed."""
        return monotonic()

    def pass_time(self, seconds: float) -> None:
        """A moment passes, however long it should be."""
        sleep(min(seconds, _SHORT_SECONDS))

    def open(self, client: str) -> Session:
        """A client connects."""
        session = _RealSession(client, self._run(connect(self._dsn, "squad", name=client)))
        self._open.add(session)
        return session

    def end(self, session: Session) -> None:
        """The server ends it, and has ended it when this returns."""
        super().end(session)
        assert isinstance(session, _RealSession)
        if session in self._open:
            self._open.remove(session)
            self._run(session.connection.close())

    def close(self) -> None:
        """Its database goes."""
        self._resources.close()

    def _do(self, session: Session, word: Word) -> Any:
        assert isinstance(session, _RealSession)
        answer = self._run(_said(session.connection, word))
        if word.what == "append":
            self.keep(word.arguments[0])
        return answer

    def _hang_up(self) -> None:
        for session in list(self._open):
            self.end(session)
        self._run(self._watching.close())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)


async def _said(connection: Connection, word: Word) -> Any:
    match word.what, word.arguments:
        case "rollback", ():
            return await connection.rollback()
        case "recall", (wanted,):
            return await _read_what_is_recalled(connection, wanted)
        case "append", (batch, decided_at, commit):
            return await log.append(connection, batch, decided_at, commit=commit)
        case "lock_and_read", (position,):
            return await log.lock_and_read(connection, position)
        case "read_after", (position, limit):
            return await log.read_after(connection, position, limit)
        case what, arguments:
            return await getattr(log, what)(connection, *arguments)
