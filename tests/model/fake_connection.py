"""The client's end of a connection: the part of psycopg that the writer uses.

The process waits for each `Statement` that it has sent, until the model decides what happens to it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.model.server import Session

Rows = list[tuple[Any, ...]]


class Statement(NamedTuple):
    """A message from a client to the server."""

    query: str
    parameters: Any = None
    is_simple: bool = False
    """Whether it uses the simple query protocol: several statements, with the parameters interpolated."""
    is_binary: bool = False


class FakeConnection:
    """A stand-in for a psycopg connection."""

    def __init__(self, session: Session, *, is_pooled: bool = False) -> None:
        self.session = session
        self.is_broken = False
        self.pending: Statement | None = None
        """The statement that was sent and is not answered yet."""
        self.pgconn = self
        self.prepare_threshold = None if is_pooled else 5
        """None marks a connection through a pooler."""
        self._answer: asyncio.Future[list[Rows]] | None = None

    async def send(self, statement: Statement) -> list[Rows]:
        """Send a message; return the rows of each of its statements."""
        if self.is_broken:
            raise psycopg.OperationalError("the connection is broken")
        assert self.pending is None, "two statements on one connection at a time"
        self.pending = statement
        self._answer = asyncio.get_running_loop().create_future()
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.is_broken = True
            raise

    def receive(self, answer: list[Rows] | psycopg.Error) -> None:
        """Receive the answer."""
        self.pending = None
        if self._answer is None or self._answer.done():
            return
        if isinstance(answer, psycopg.Error):
            self._answer.set_exception(answer)
        else:
            self._answer.set_result(answer)

    def disconnect(self) -> None:
        """Break the connection: a waiting caller gets an error; its statement may still be in flight."""
        statement, self.is_broken = self.pending, True
        self.receive(psycopg.OperationalError("the connection broke"))
        self.pending = statement

    # the connection's interface ---------------------------------------------------------------------------

    async def execute(
        self, query: str | sql.Composable, parameters: Any = None, *, binary: bool = False, **_: Any
    ) -> Cursor:
        """Execute one statement."""
        return await Cursor(self).execute(query, parameters, binary=binary)

    def cursor(self) -> Cursor:
        """Return a cursor, which can execute several statements in turn."""
        return Cursor(self)

    async def rollback(self) -> None:
        """Roll back the transaction."""
        await self.send(Statement("ROLLBACK"))

    def finish(self) -> None:
        """Close the connection."""
        self.is_broken = True

    def add_notice_handler(self, _: object) -> None:
        """Do nothing: the model's server sends no notices."""

    remove_notice_handler = add_notice_handler

    def fileno(self) -> int:
        """Break the connection, because callers use the descriptor only to shut it down."""
        self.disconnect()
        raise psycopg.OperationalError("the connection has no file descriptor")


class Cursor:
    """A stand-in for a psycopg cursor."""

    is_simple = False

    def __init__(
        self,
        connection: FakeConnection,
        *,
        row_factory: Callable[[Any], Callable[[Sequence[Any]], Any]] | None = None,
    ) -> None:
        self._connection = connection
        self._row = row_factory(self) if row_factory else tuple
        self._sets: list[Rows] = []

    async def __aenter__(self) -> Cursor:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def execute(
        self, query: str | sql.Composable, parameters: Any = None, *, binary: bool = False, **_: Any
    ) -> Cursor:
        """Execute a statement."""
        text = query.as_string(None) if isinstance(query, sql.Composable) else query
        self._sets = list(await self._connection.send(Statement(text, parameters, self.is_simple, binary)))
        return self

    def nextset(self) -> bool:
        """Move on to the rows of the next statement."""
        self._sets.pop(0)
        return bool(self._sets)

    async def fetchone(self) -> Any:
        """The next row."""
        return self._row(self._sets[0].pop(0)) if self._sets[0] else None

    async def fetchall(self) -> list[Any]:
        """The remaining rows."""
        rows, self._sets[0] = self._sets[0], []
        return [self._row(row) for row in rows]


class SimpleCursor(Cursor):
    """A stand-in for a client-side cursor."""

    is_simple = True
