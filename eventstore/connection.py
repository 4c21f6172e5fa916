"""Open connections to the squad's database: schema, time zone, timeouts, adapters.

They may go through a pooler. In transaction mode it hands each transaction to a different server process:
session settings do not reach it, so they must be settings of the role; statements must not be prepared; and
whatever needs a session (LISTEN, a session lock) needs another way to the server (`eventstore.pooler`).
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
"""Lower case and short: channel names are built from it, and Postgres truncates those to 63 bytes."""

_KEEPALIVE = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""Seconds (tcp_user_timeout: milliseconds). A dead peer is noticed within about 15 seconds."""


FIRST_QUERY_SECONDS = 10.0
"""Timeout of the first query: a pooler accepts more clients than it serves; nothing else covers that."""

CHECK_SECONDS = 5.0
"""How long a reader waits for a connection of a pool, and a connection's check for the server."""

_NO_ANSWER = (
    f"connected, but got no answer within {FIRST_QUERY_SECONDS:g} seconds: perhaps all server connections"
    " of a pooler are in use"
)

_log = logging.getLogger(__name__)

_HAS_TRANSACTION_TIMEOUT = 170_000
_TRANSACTION_TIMEOUT_MILLISECONDS = 120_000


class _Session(psycopg.AsyncConnection[Any]):
    """A connection that also works through poolers that accept no startup options."""

    lock_wait_seconds: float | None = None
    """How long the log's lock was waited for, until `pop_lock_wait` is called."""

    @cached_property
    def reusable_cursor(self) -> psycopg.AsyncCursor[Any]:
        """See the function of that name."""
        return self.cursor()

    @classmethod
    async def connect(cls, conninfo: str = "", **more: Any) -> _Session:
        """Connect; skip an old primary and try the next server that the DSN names."""
        skip_reasons: list[str] = []
        left: str | None = conninfo
        while left is not None:
            try:
                session = await cls._connect_once(left, **more)
            except psycopg.OperationalError as error:
                if not skip_reasons:
                    raise
                skip_reasons.append(why_not_connected(error))
                break
            asked_at = monotonic()
            try:
                with closing_after(FIRST_QUERY_SECONDS, session):
                    reason = await timelines.stale_primary_reason(session)
            except BaseException as error:
                session.pgconn.finish()
                if isinstance(error, psycopg.Error) and monotonic() - asked_at >= FIRST_QUERY_SECONDS:
                    raise psycopg.OperationalError(_NO_ANSWER) from error
                raise
            if reason is None:
                return session
            _log.warning("skipping a server: %s", reason)
            skip_reasons.append(reason)
            left = timelines.without_server(left, session.info.host, session.info.port)
            session.pgconn.finish()
        raise psycopg.OperationalError("; ".join(skip_reasons))

    @classmethod
    async def _connect_once(cls, conninfo: str, **more: Any) -> _Session:
        """Connect, without the startup options if those are rejected."""
        try:
            return await super().connect(conninfo, **more)
        except psycopg.OperationalError as error:
            if "unsupported startup parameter" not in str(error) or not more.pop("options", None):
                raise
            return await super().connect(conninfo, **more)


class _UuidText(Loader):
    """Loads UUIDs as strings, as ids are throughout the project."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


def session_options(schema: str, **settings: str | int) -> str:
    """Return the libpq `options` for a session of the squad whose Postgres schema is `schema`."""
    if not SCHEMA_NAME.fullmatch(schema):
        raise ValueError(f"a squad's schema name must match {SCHEMA_NAME.pattern}: {schema!r}")
    merged = {
        "search_path": schema,
        "TimeZone": "UTC",
        "DateStyle": "ISO",
        "synchronous_commit": "on",
        "idle_in_transaction_session_timeout": 10_000,
        "lock_timeout": 5_000,
        "statement_timeout": 60_000,
        # The server's side of `_KEEPALIVE`: a client that vanished must not hold its locks for hours.
        "tcp_keepalives_idle": 5,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
        **settings,
    }
    return " ".join(f"-c {name}={value}" for name, value in merged.items())


async def connect(dsn: str, schema: str, *, name: str, **settings: str | int) -> Connection:
    """Open an autocommit connection for one squad.

    Args:
        dsn: libpq connection string or URI.
        schema: the squad's Postgres schema.
        name: shown as `application_name` in pg_stat_activity.
        settings: server settings for this session; times in milliseconds. `transaction_timeout` is omitted
            if the server does not support it.

    Raises:
        NotConnected: the database cannot be reached.
        StoreUnavailable: the connection broke before it could be used.
        PoolerMisconfigured: the connection goes through a pooler and lacks settings that the session needs.
    """
    longest = int(settings.pop("transaction_timeout", _TRANSACTION_TIMEOUT_MILLISECONDS))
    with translating():
        try:
            connection = await _Session.connect(
                dsn,
                autocommit=True,
                **{**_KEEPALIVE, **_overrides(dsn)},
                application_name=name,
                options=_options(dsn, session_options(schema, **settings)),
            )
        except psycopg.OperationalError as error:
            raise NotConnected(why_not_connected(error)) from error
        except UnicodeError as error:
            raise NotConnected("a label of the host name is empty or too long") from error
        try:
            with closing_after(FIRST_QUERY_SECONDS, connection):
                is_direct = await pooler.is_direct(connection, schema)
            if is_direct and connection.info.server_version >= _HAS_TRANSACTION_TIMEOUT:
                # For a client that is suspended in the middle of a request: no other timeout covers it.
                await connection.execute(f"SET transaction_timeout = {longest}")
        except BaseException:
            connection.pgconn.finish()
            raise
    configure(connection)
    return connection


def pool(dsn: str, schema: str, *, name: str, size: int) -> AsyncConnectionPool[Connection]:
    """Return an unopened pool of at most `size` read connections, to use with `async with`."""
    return AsyncConnectionPool(
        dsn,
        kwargs={
            **_KEEPALIVE,
            **_overrides(dsn),
            "autocommit": True,
            "application_name": name,
            "options": _options(dsn, session_options(schema)),
        },
        configure=partial(_configure, schema),
        connection_class=_Session,
        check=_check,
        min_size=1,
        max_size=size,
        timeout=CHECK_SECONDS,
        max_waiting=1_000,
        # Give up soon; the next reader starts over. The pool backs off between attempts, and would keep
        # readers waiting for seconds after the database is back.
        reconnect_timeout=1,
        open=False,
    )


def configure(connection: psycopg.AsyncConnection[Any]) -> None:
    """Set how this connection converts Postgres values to Python."""
    connection.adapters.register_loader("uuid", _UuidText)
    set_json_loads(orjson.loads, connection)
    set_json_dumps(orjson.dumps, connection)


async def _check(connection: Connection) -> None:
    """Check an idle connection before it is used; one that does not answer is closed, and another taken."""
    # No other timeout covers it: the server's own do not run while it is silent.
    with closing_after(CHECK_SECONDS, connection):
        await AsyncConnectionPool.check_connection(connection)


async def _configure(schema: str, connection: Connection) -> None:
    with closing_after(FIRST_QUERY_SECONDS, connection):
        is_direct = await pooler.is_direct(connection, schema)
    if is_direct:
        # Not at startup: with target_session_attrs=read-write, libpq would take the server for a standby.
        await connection.execute("SET default_transaction_read_only = on")
    configure(connection)


def _overrides(dsn: str) -> dict[str, Any]:
    """Return the settings of the user's connection string that override our defaults."""
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    return {key: value for key, value in given.items() if key in _KEEPALIVE}


def _options(dsn: str, ours: str) -> str:
    theirs = psycopg.conninfo.conninfo_to_dict(dsn).get("options")
    return f"{theirs} {ours}" if theirs else ours


def reusable_cursor(connection: Connection) -> psycopg.AsyncCursor[Any]:
    """Return a cursor to reuse for frequent statements: creating one takes a tenth of an append's time."""
    return connection.reusable_cursor if isinstance(connection, _Session) else connection.cursor()


def record_lock_wait(connection: Connection, seconds: float) -> None:
    """Keep how long this connection waited for the log's lock, for the metrics."""
    if isinstance(connection, _Session):
        connection.lock_wait_seconds = seconds


def pop_lock_wait(connection: Connection) -> float | None:
    """Return how many seconds the log's lock was waited for; None if it was not since the last call."""
    if not isinstance(connection, _Session):
        return None
    seconds, connection.lock_wait_seconds = connection.lock_wait_seconds, None
    return seconds


class recording_failed_lock_wait:  # noqa: N801 - a context manager, and written as one where it is used
    """Keeps how long the lock was waited for if the server gave up (`lock_timeout`)."""

    __slots__ = ("_asked", "_connection")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked = monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, psycopg.errors.LockNotAvailable):
            record_lock_wait(self._connection, monotonic() - self._asked)


def shut_down_socket(connection: Connection) -> None:
    """Shut down the connection's socket, so that a task that waits on it gets an error at once.

    Cancelling the task instead would first try to cancel the query on the server, and wait up to ten
    seconds if the server process is stopped or the network drops packets.
    """
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


class closing_after:  # noqa: N801 - a context manager, and written as one where it is used
    """A timeout for the block: after `seconds` the connection is closed, and what waits on it fails."""

    __slots__ = ("_timer",)

    def __init__(self, seconds: float, connection: Connection) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, shut_down_socket, connection)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
