"""Skip old primaries: servers that came back after a standby took over from them.

A standby that is promoted begins a new timeline, one higher. An old primary that is started again is on the
previous one, and accepts writes too: they will be lost, and what it returns is stale. So this process
remembers the highest timeline that it has seen of each family of servers (copies of one another share a
system identifier), and avoids lower ones. It cannot know of a timeline that it has not seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMELINE = """
    SELECT system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint
    FROM pg_control_system()
    WHERE NOT pg_is_in_recovery()
"""

_highest: dict[int, int] = {}
"""The highest timeline seen, by system identifier."""


async def stale_primary_reason(connection: psycopg.AsyncConnection[Any]) -> str | None:
    """Return why a server that accepts writes must not be used; None if it may be, or that is unknown."""
    try:
        row = await (await connection.execute(_TIMELINE)).fetchone()
    except psycopg.Error:
        if connection.closed:
            raise
        # Services that do not use the replication of Postgres have no timelines.
        return None
    if row is None:
        return None
    family, timeline = row
    highest = _highest[family] = max(timeline, _highest.get(family, timeline))
    if timeline == highest:
        return None
    return (
        f"the server at {connection.info.host!r}, port {connection.info.port}, is an old primary, on"
        f" timeline {timeline}: another has taken over, on timeline {highest}"
    )


def without_server(dsn: str, host: str, port: int) -> str | None:
    """Return the DSN without one of the servers that it names; None if it names no other."""
    parts = conninfo_to_dict(dsn)
    lists: dict[str, list[str]] = {
        name: str(parts[name]).split(",") for name in ("host", "hostaddr", "port") if name in parts
    }
    count = max(map(len, lists.values()), default=0)
    # A single port applies to all hosts.
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
