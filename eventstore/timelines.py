"""Servers that others have taken over from: one that comes back all the same is passed over.

A standby that is promoted begins a new timeline, one higher. An old primary that is started again is on
the one before, and takes writes as well: what it is told will be lost, and what it tells is out of date.
So this process remembers the highest timeline that it has met of each family of servers (copies of one
another have one system identifier), and keeps away from lower ones. What it has not met it cannot know of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import Mapping

_ASK = """
    SELECT system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
    FROM pg_control_system()
    WHERE NOT pg_is_in_recovery()
"""

_highest: dict[int, int] = {}
"""By system identifier."""


async def left_behind(connection: psycopg.AsyncConnection[Any]) -> str | None:
    """Why a server that takes writes is not to be used; None where it is, or where that cannot be known."""
    try:
        row = await (await connection.execute(_ASK)).fetchone()
    except psycopg.Error:
        if connection.closed:
            raise
        # Services that replicate by other means than Postgres have no timelines to tell of.
        return None
    if row is None:
        return None
    family, timeline = row
    highest = _highest[family] = max(timeline, _highest.get(family, timeline))
    if timeline == highest:
        return None
    return (
        f"the server at {connection.info.host!r}, port {connection.info.port}, is an old primary, on"
        f" timeline {timeline}: another one has taken over, on {highest}"
    )


def without(dsn: str, host: str, port: int) -> str | None:
    """The DSN without one of the servers that it names; None where it names no other."""
    parts = conninfo_to_dict(dsn)
    lists: dict[str, list[str]] = {
        name: str(parts[name]).split(",") for name in ("host", "hostaddr", "port") if name in parts
    }
    count = max(map(len, lists.values()), default=0)
    # One port may stand for all.
    columns = {name: said * count if len(said) == 1 else said for name, said in lists.items()}
    servers = [{name: columns[name][number] for name in columns} for number in range(count)]
    left = [server for server in servers if not _is(server, host, port)]
    if not left or len(left) == count:
        return None
    kept = {name: ",".join(server[name] for server in left) for name in columns}
    return make_conninfo(dsn, **kept)


def _is(server: Mapping[str, str], host: str, port: int) -> bool:
    named = {server.get("host"), server.get("hostaddr")}
    return host in named and int(server.get("port") or port) == port
