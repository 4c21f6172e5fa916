"""The decision state at start: the read tables as far as they are, and the log from there.

The tables are a fold of the log up to their position, by the same handlers, so they serve as a snapshot. A
table that was folded by other handlers, or that stopped somewhere, is no snapshot of one moment; then the
log is folded from its beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from eventstore import codec, log
from eventstore.connection import hanging_up_after
from eventstore.errors import LogNotUnderstood, StoreUnavailable
from eventstore.recorded import Head
from eventstore.translation import translating
from projections import PROJECTIONS, storage
from service.squad import RESIDENT, Draft, Squad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded

STUCK_AFTER_SECONDS = 10.0
"""A round trip that takes longer is given up, and its connection cut."""

_LOADED_WITHIN_SECONDS = 60.0

_ACTIVE: dict[str, sql.SQL] = {
    "operations": sql.SQL("WHERE state = 'active'"),
    "reservations": sql.SQL("WHERE state = 'active'"),
    "jobs": sql.SQL("WHERE NOT removed"),
    "api_keys": sql.SQL("WHERE state = 'active'"),
    "job_runs": sql.SQL("WHERE status = 'running'"),
    "squad_tasks": sql.SQL("WHERE status <> 'completed'"),
    "email_logs": sql.SQL("WHERE status NOT IN ('sent', 'archived')"),
    "budget_days": sql.SQL("WHERE closed_at IS NULL OR reserved <> 0"),
    "budgets": sql.SQL(
        "WHERE day IN (SELECT day FROM budget_days WHERE closed_at IS NULL OR reserved <> 0)"
    ),
}
"""Which rows to read; `service.squad.RESIDENT` has the last word on which stay."""


async def restore(connection: Connection) -> Squad:
    """The squad's state at the log's head.

    Raises:
        StoreUnavailable: the connection broke, or was cut because nothing came for too long.
    """
    squad = Squad()
    with hanging_up_after(_LOADED_WITHIN_SECONDS, connection), translating():
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await _load_tables(connection, squad)
        await connection.execute("ROLLBACK")
    await catch_up(connection, squad)
    return squad


async def catch_up(
    connection: Connection, squad: Squad, tell: Callable[[Sequence[Recorded]], None] | None = None
) -> None:
    """Folds what follows the squad's head, and tells of it page by page."""
    while True:
        with hanging_up_after(STUCK_AFTER_SECONDS, connection):
            page = await log.read_after(connection, squad.head.position)
        if page:
            fold_page(squad, page)
            if tell:
                tell(page)
        if len(page) < log.PAGE_EVENTS:
            return


def fold_page(squad: Squad, page: Sequence[Recorded]) -> None:
    """Folds consecutive events that follow the squad's head.

    Raises:
        StoreUnavailable: they do not follow it; the log was replaced under us.
        LogNotUnderstood: one of them cannot be folded. The squad is as it was before.
    """
    draft = Draft(squad)
    for recorded in page:
        if recorded.position != draft.head.position + 1:
            raise StoreUnavailable(f"position {draft.head.position + 1} is missing from the log")
        try:
            draft.fold(codec.decode(recorded), recorded)
        except Exception as fault:
            raise LogNotUnderstood(
                f"at position {recorded.position}, {type(fault).__name__}: {fault}"
            ) from fault
    squad.merge(draft)


async def _load_tables(connection: Connection, squad: Squad) -> None:
    cursor = await connection.execute("SELECT name, position, fold_version FROM projections")
    found = {name: (position, version) for name, position, version in await cursor.fetchall()}
    ours = {projection.name: projection.fold_version for projection in PROJECTIONS}
    positions = {position for position, _ in found.values()}
    if len(positions) != 1 or {name: version for name, (_, version) in found.items()} != ours:
        return
    last = await log.read_one(connection, positions.pop())
    if last is None:
        return
    for name, residence in RESIDENT.items():
        where = _ACTIVE.get(name, sql.SQL(""))
        squad.load(residence.table, await storage.select(connection, residence.table, where, {}))
    squad.versions = await log.versions(connection, squad.streams(), last.position)
    squad.head = Head(last.position, last.hash, last.recorded_at)
