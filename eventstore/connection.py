"""How every connection to the squad's database is opened: schema, time zone, timeouts, adapters.

A pooler may stand between. In transaction mode it hands every transaction to another server process:
settings of a session do not get there, so they must be the role's own, statements must not be prepared, and
whoever needs a session (to listen, or to keep a lock) needs another way (`eventstore.pooler`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from functools import cached_property, partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
from psycopg.adapt import Loader
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg_pool import AsyncConnectionPool

from eventstore import pooler, timelines
from eventstore.errors import NotConnected
from eventstore.translation import translating, why_not_connected

if TYPE_CHECKING:
    from psycopg.abc import Buffer

Connection = psycopg.AsyncConnection[Any]

SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
"""Lower case and short: channel names are built from it, and Postgres cuts those at 63 bytes."""

_KEEPALIVE = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""Seconds (tcp_user_timeout: milliseconds). A peer that vanished is noticed within about 15 seconds."""


FIRST_ANSWER_SECONDS = 10.0
"""How long the first question waits: a pooler lets in more than it serves, and no timeout covers that."""

_NO_ANSWER = (
    f"connected, and nothing was answered for {FIRST_ANSWER_SECONDS:g} seconds: perhaps a pooler whose"
    " server connections are all in use"
)

_log = logging.getLogger(__name__)

_HAS_TRANSACTION_TIMEOUT = 170_000
_TRANSACTION_TIMEOUT_MILLISECONDS = 120_000


class _Session(psycopg.AsyncConnection[Any]):
    """A connection that is also let in by poolers which take no options."""

    lock_wait_seconds: float | None = None
    """How long the log's lock was waited for, where nobody has taken note of that yet."""

    @cached_property
    def kept_cursor(self) -> psycopg.AsyncCursor[Any]:
        """See the function of that name."""
        return self.cursor()

    @classmethod
    async def connect(cls, conninfo: str = "", **more: Any) -> _Session:
        """Connects, and not to an old primary: to the next server that is named, where it finds one."""
        passed_over: list[str] = []
        left: str | None = conninfo
        while left is not None:
            try:
                session = await cls._connected(left, **more)
            except psycopg.OperationalError as error:
                if not passed_over:
                    raise
                passed_over.append(why_not_connected(error))
                break
            asked = monotonic()
            try:
                with hanging_up_after(FIRST_ANSWER_SECONDS, session):
                    reason = await timelines.left_behind(session)
            except BaseException as error:
                session.pgconn.finish()
                if isinstance(error, psycopg.Error) and monotonic() - asked >= FIRST_ANSWER_SECONDS:
                    raise psycopg.OperationalError(_NO_ANSWER) from error
                raise
            if reason is None:
                return session
            _log.warning("passed over: %s", reason)
            passed_over.append(reason)
            left = timelines.without(left, session.info.host, session.info.port)
            session.pgconn.finish()
        raise psycopg.OperationalError("; ".join(passed_over))

    @classmethod
    async def _connected(cls, conninfo: str, **more: Any) -> _Session:
        """Connects; without the options where they are what is in the way."""
        try:
            return await super().connect(conninfo, **more)
        except psycopg.OperationalError as error:
            if "unsupported startup parameter" not in str(error) or not more.pop("options", None):
                raise
            return await super().connect(conninfo, **more)


class _UuidText(Loader):
    """Ids are strings everywhere in this project."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


def session_options(schema: str, **settings: str | int) -> str:
    """The libpq `options` for a session of the squad whose Postgres schema is `schema`."""
    if not SCHEMA_NAME.fullmatch(schema):
        raise ValueError(f"a squad's schema is named like {SCHEMA_NAME.pattern}, not {schema!r}")
    merged = {
        "search_path": schema,
        "TimeZone": "UTC",
        "DateStyle": "ISO",
        "synchronous_commit": "on",
        "idle_in_transaction_session_timeout": 10_000,
        "lock_timeout": 5_000,
        "statement_timeout": 60_000,
        # The server's side of `_KEEPALIVE`: a client that vanished must not keep its locks for hours.
        "tcp_keepalives_idle": 5,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
        **settings,
    }
    return " ".join(f"-c {name}={value}" for name, value in merged.items())


async def connect(dsn: str, schema: str, *, name: str, **settings: str | int) -> Connection:
    """Opens an autocommit connection for one squad.

    Args:
        dsn: libpq connection string or URI.
        schema: the squad's Postgres schema.
        name: shown as `application_name` in pg_stat_activity.
        settings: server settings for this session; times in milliseconds. `transaction_timeout` is left
            out where the server does not know it.

    Raises:
        NotConnected: the database cannot be reached.
        StoreUnavailable: the connection broke before it could be used.
        PoolerInTheWay: a pooler keeps from the session what it cannot do without.
    """
    longest = int(settings.pop("transaction_timeout", _TRANSACTION_TIMEOUT_MILLISECONDS))
    with translating():
        try:
            connection = await _Session.connect(
                dsn,
                autocommit=True,
                **{**_KEEPALIVE, **_own(dsn)},
                application_name=name,
                options=_options(dsn, session_options(schema, **settings)),
            )
        except psycopg.OperationalError as error:
            raise NotConnected(why_not_connected(error)) from error
        except UnicodeError as error:
            raise NotConnected("a part of its host's name is empty or too long") from error
        try:
            with hanging_up_after(FIRST_ANSWER_SECONDS, connection):
                is_direct = await pooler.is_direct(connection, schema)
            if is_direct and connection.info.server_version >= _HAS_TRANSACTION_TIMEOUT:
                # For a client that stands still in the middle of a request: no other timeout covers it.
                await connection.execute(f"SET transaction_timeout = {longest}")
        except BaseException:
            connection.pgconn.finish()
            raise
    configure(connection)
    return connection


def pool(dsn: str, schema: str, *, name: str, size: int) -> AsyncConnectionPool[Connection]:
    """A pool of at most `size` read connections (unopened: use it as an async context manager)."""
    return AsyncConnectionPool(
        dsn,
        kwargs={
            **_KEEPALIVE,
            **_own(dsn),
            "autocommit": True,
            "application_name": name,
            "options": _options(dsn, session_options(schema)),
        },
        configure=partial(_configure, schema),
        connection_class=_Session,
        check=AsyncConnectionPool.check_connection,
        min_size=1,
        max_size=size,
        timeout=5,
        max_waiting=1_000,
        # Given up soon, and begun anew for whoever asks next: between attempts the pool waits longer and
        # longer, and would keep readers away for seconds after the database is back.
        reconnect_timeout=1,
        open=False,
    )


def configure(connection: psycopg.AsyncConnection[Any]) -> None:
    """Sets how this connection turns Postgres values into ours."""
    connection.adapters.register_loader("uuid", _UuidText)
    set_json_loads(orjson.loads, connection)
    set_json_dumps(orjson.dumps, connection)


async def _configure(schema: str, connection: Connection) -> None:
    with hanging_up_after(FIRST_ANSWER_SECONDS, connection):
        is_direct = await pooler.is_direct(connection, schema)
    if is_direct:
        # Not at its start: where only a server that takes writes will do, it would be taken for a standby.
        await connection.execute("SET default_transaction_read_only = on")
    configure(connection)


def _own(dsn: str) -> dict[str, Any]:
    """What the user's connection string says goes before our defaults."""
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    return {key: value for key, value in given.items() if key in _KEEPALIVE}


def _options(dsn: str, ours: str) -> str:
    theirs = psycopg.conninfo.conninfo_to_dict(dsn).get("options")
    return f"{theirs} {ours}" if theirs else ours


def kept_cursor(connection: Connection) -> psycopg.AsyncCursor[Any]:
    """A cursor for what a connection executes again and again: a new one takes a tenth of an append."""
    return connection.kept_cursor if isinstance(connection, _Session) else connection.cursor()


def note_lock_wait(connection: Connection, seconds: float) -> None:
    """Keeps for how long the log's lock was waited for on this connection, for whoever measures it."""
    if isinstance(connection, _Session):
        connection.lock_wait_seconds = seconds


def take_lock_wait(connection: Connection) -> float | None:
    """For how many seconds the log's lock was waited for; None where it was not since the last call."""
    if not isinstance(connection, _Session):
        return None
    seconds, connection.lock_wait_seconds = connection.lock_wait_seconds, None
    return seconds


class noting_a_vain_wait:  # noqa: N801 - a context manager, and written as one where it is used
    """Keeps also for how long the lock was waited for where the server gave up (`lock_timeout`)."""

    __slots__ = ("_asked", "_connection")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked = monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, psycopg.errors.LockNotAvailable):
            note_lock_wait(self._connection, monotonic() - self._asked)


def hang_up(connection: Connection) -> None:
    """Cuts the connection's socket, so that whoever waits on it gets an error now.

    Cancelling the waiting task instead would first try to cancel the query in the server, and wait up to
    ten seconds where the server process is stopped or the network swallows packets.
    """
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


class hanging_up_after:  # noqa: N801 - a context manager, and written as one where it is used
    """Bounds what is awaited inside: after `seconds` the connection is cut, and the wait is an error."""

    __slots__ = ("_timer",)

    def __init__(self, seconds: float, connection: Connection) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, hang_up, connection)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
