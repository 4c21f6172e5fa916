"""Connections through a pooler, such as pgbouncer: how they are known, and what they need.

A pooler gives each client a server process number of its own making, which is how it is told from a direct
connection. It may keep a session together or not; that cannot be seen from here, so it is taken not to.

What a session would have been told at its start must then be the role's own settings. Without the search
path, another schema would be read and written; without the timeouts, a process that stands still could keep
the log's lock for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import sql

from eventstore.errors import PoolerInTheWay

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
    """Whether no pooler stands between. Where one does, no statement of this connection is prepared.

    Raises:
        PoolerInTheWay: one does, and settings that the session needs are missing; says how to make them.
    """
    row = await (await connection.execute(_EXAMINE)).fetchone()
    assert row is not None
    found = _Found(*row)
    if found.pid == connection.info.backend_pid:
        return True
    connection.prepare_threshold = None
    if lacking := _lacking(found, schema):
        statements = "; ".join(_statement(found, name, value) for name, value in lacking.items())
        raise PoolerInTheWay(
            "it does not pass on the settings of a session. Make them the role's own, and have the pooler "
            f"connect anew: {statements}"
        )
    return False


def stands_between(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether a pooler was found when the connection was opened. Nothing else turns preparing off."""
    return connection.prepare_threshold is None


def _lacking(found: _Found, schema: str) -> dict[str, str]:
    """The settings that are not as they must be, and what they should be."""
    wanted = {
        "search_path": (schema, schema in (found.current_schema, found.search_path.strip('"'))),
        "TimeZone": ("UTC", found.time_zone in ("UTC", "Etc/UTC")),
        "DateStyle": ("ISO", found.date_style.startswith("ISO")),
        "synchronous_commit": ("on", found.synchronous_commit in ("on", "remote_apply")),
        "lock_timeout": ("5s", found.lock_timeout != "0"),
        "statement_timeout": ("60s", found.statement_timeout != "0"),
        "idle_in_transaction_session_timeout": ("10s", found.idle_in_transaction_session_timeout != "0"),
    }
    return {name: value for name, (value, is_there) in wanted.items() if not is_there}


def _statement(found: _Found, name: str, value: str) -> str:
    statement = sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} = {}")
    whose = sql.Identifier(found.role), sql.Identifier(found.database), sql.Identifier(name)
    return statement.format(*whose, sql.Literal(value)).as_string(None)
