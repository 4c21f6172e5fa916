"""Connections through a pooler, such as pgbouncer: how to detect them, and what they need.

A pooler makes up the backend process id that it gives to each client, which distinguishes it from a direct
connection. Whether it pools sessions or transactions cannot be detected, so the latter is assumed.

The settings of a session must then be settings of the role. Without the search path, another schema would
be read and written; without the timeouts, a suspended process could hold the log's lock forever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import sql

from eventstore.errors import PoolerMisconfigured

if TYPE_CHECKING:
    import psycopg

_EXAMINE = """
    SELECT pg_backend_pid(), current_user::text, current_database()::text, current_schema()::text,
           current_setting('search_path'), current_setting('TimeZone'), current_setting('DateStyle'),
           current_setting('synchronous_commit'), current_setting('lock_timeout'),
           current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout')
"""


class _Found(NamedTuple):
    pid: int
    role: str
    database: str
    current_schema: str | None
    search_path: str
    time_zone: str
    date_style: str
    synchronous_commit: str
    lock_timeout: str
    statement_timeout: str
    idle_in_transaction_session_timeout: str


async def is_direct(connection: psycopg.AsyncConnection[Any], schema: str) -> bool:
    """Whether a connection is direct. Through a pooler, its statements are no longer prepared.

    Raises:
        PoolerMisconfigured: it is not, and lacks settings that the session needs; the message says how to
            set them.
    """
    row = await (await connection.execute(_EXAMINE)).fetchone()
    assert row is not None
    found = _Found(*row)
    if found.pid == connection.info.backend_pid:
        return True
    connection.prepare_threshold = None
    if lacking := _lacking(found, schema):
        statements = "; ".join(_statement(found, name, value) for name, value in lacking.items())
        raise PoolerMisconfigured(
            "it does not pass on session settings. Set them for the role, and have the pooler reconnect: "
            f"{statements}"
        )
    return False


def is_pooled(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether a pooler was detected when the connection was opened: nothing else disables preparing."""
    return connection.prepare_threshold is None


def _lacking(found: _Found, schema: str) -> dict[str, str]:
    """Return the settings that are wrong, with the values that they should have."""
    required = {
        "search_path": (schema, schema in (found.current_schema, found.search_path.strip('"'))),
        "TimeZone": ("UTC", found.time_zone in ("UTC", "Etc/UTC")),
        "DateStyle": ("ISO", found.date_style.startswith("ISO")),
        "synchronous_commit": ("on", found.synchronous_commit in ("on", "remote_apply")),
        "lock_timeout": ("5s", found.lock_timeout != "0"),
        "statement_timeout": ("60s", found.statement_timeout != "0"),
        "idle_in_transaction_session_timeout": ("10s", found.idle_in_transaction_session_timeout != "0"),
    }
    return {name: value for name, (value, is_there) in required.items() if not is_there}


def _statement(found: _Found, name: str, value: str) -> str:
    statement = sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}")
    identifiers = sql.Identifier(found.role), sql.Identifier(found.database), sql.Identifier(name)
    return statement.format(*identifiers, sql.Literal(value)).as_string(None)
