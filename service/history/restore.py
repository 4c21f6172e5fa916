"""The decision state at startup: loaded from the read tables or a snapshot, and the log from there.

The tables are a fold of the log up to their position, by the same handlers, so they serve as a snapshot. If
one that decisions need was folded by other handlers, or stopped earlier, they are not a snapshot of one
moment. Then, and whenever the last snapshot (`service.history.snapshots`) is about as near to the head,
that snapshot is loaded. Without either, the log is folded from the beginning, and snapshots are stored on
the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from eventstore import log, lookup, sealing
from eventstore.connection import closing_after
from eventstore.page_size import PageSizer
from eventstore.recorded import Head
from eventstore.translation import translating
from projections import PROJECTIONS, storage
from service.history import continuity, snapshots
from service.history.folding import STUCK_AFTER_SECONDS, fold_page, fold_to, load_open, snapshot_writer
from service.memory.residence import OPEN_EMAILS, OPEN_TASKS, RESIDENT, RESIDENT_PROJECTIONS
from service.memory.squad import Squad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventstore.connection import Connection
    from eventstore.keys import Keyring
    from eventstore.recorded import Recorded

MAX_FOLD_EVENTS = 2 * snapshots.INTERVAL_EVENTS
"""Folding this many events is faster than selecting the active rows from large tables."""

_LOAD_TIMEOUT_SECONDS = 60.0

_ACTIVE: dict[str, sql.Composable] = {
    "operations": sql.SQL("WHERE state = 'active'"),
    "reservations": sql.SQL("WHERE state = 'active'"),
    "jobs": sql.SQL("WHERE NOT removed"),
    "api_keys": sql.SQL("WHERE state = 'active'"),
    "job_runs": sql.SQL("WHERE status = 'running'"),
    "squad_tasks": sql.SQL("WHERE status = ANY({})").format(list(OPEN_TASKS)),
    "email_logs": sql.SQL("WHERE status = ANY({})").format(list(OPEN_EMAILS)),
    "budget_days": sql.SQL("WHERE closed_at IS NULL OR reserved <> 0"),
    "budgets": sql.SQL(
        "WHERE day IN (SELECT day FROM budget_days WHERE closed_at IS NULL OR reserved <> 0)"
    ),
}
"""Which rows to read; `service.memory.residence.RESIDENT` decides which of them stay in memory."""


async def restore(connection: Connection, keyring: Keyring | None = None) -> Squad:
    """Return the squad's state at the log's head.

    Raises:
        StoreUnavailable: the connection broke, or was cut because nothing arrived for too long.
    """
    with closing_after(_LOAD_TIMEOUT_SECONDS, connection), translating():
        known = await log.head_position(connection)
        squad = await _load_nearest(connection, known)
    if known - squad.head.position >= snapshots.distance(squad):
        # If this startup is aborted, the next one resumes from the snapshots stored so far.
        await fold_to(connection, squad, known, known, store_snapshot=await snapshot_writer(connection))
    await catch_up(connection, squad, keyring=keyring)
    await load_open(connection, squad)
    return squad


async def catch_up(
    connection: Connection,
    squad: Squad,
    on_page: Callable[[Sequence[Recorded]], None] | None = None,
    keyring: Keyring | None = None,
) -> None:
    """Fold the events after the squad's head; pass each page, as stored, to `on_page`."""
    page_sizer = PageSizer(log.PAGE_EVENTS)
    while True:
        limit = page_sizer.events
        with closing_after(STUCK_AFTER_SECONDS, connection):
            page = await log.read_after(connection, squad.head.position, limit)
            await continuity.check_page(connection, squad.head, page)
            shown = await sealing.reveal(connection, page, keyring, erased_types=sealing.UNUSED_BY_STATE)
        if page:
            fold_page(squad, shown)
            if on_page:
                on_page(page)
        if len(page) < limit:
            return
        page_sizer.adapt(page)


async def _load_nearest(connection: Connection, known: int) -> Squad:
    """Load the tables, or a snapshot that is nearer to the head or almost as near."""
    behind = await _tables_at(connection) - MAX_FOLD_EVENTS
    if any(behind < position <= known for position in await snapshots.positions(connection)):
        # Not in a transaction: unpacking a large snapshot takes longer than a transaction may be idle.
        squad = await snapshots.nearest(connection, known)
        if squad and squad.head.position > behind:
            return squad
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    tables_at = await _tables_at(connection)
    squad = await _load_tables(connection, tables_at) if tables_at else Squad()
    await connection.execute("ROLLBACK")
    return squad


async def _tables_at(connection: Connection) -> int:
    """Return the position that the tables are a snapshot of; 0 if of none, or of one beyond the log."""
    cursor = await connection.execute("SELECT name, position, fold_version FROM projections")
    ours = {projection.name: projection.fold_version for projection in RESIDENT_PROJECTIONS}
    unused = {projection.name for projection in PROJECTIONS} - ours.keys()
    found = {
        name: (position, version)
        for name, position, version in await cursor.fetchall()
        if name not in unused
    }
    positions = {position for position, _ in found.values()}
    if len(positions) != 1 or {name: version for name, (_, version) in found.items()} != ours:
        return 0
    # Read after the positions: others may append in between, and their projector may follow.
    position, head = positions.pop(), await log.head_position(connection)
    return position if position <= head else 0


async def _load_tables(connection: Connection, position: int) -> Squad:
    squad = Squad()
    last = await lookup.read_one(connection, position)
    if last is None:
        return squad
    for name, residence in RESIDENT.items():
        where = _ACTIVE.get(name, sql.SQL(""))
        squad.load(residence.table, await storage.select(connection, residence.table, where, {}))
    squad.versions = await lookup.versions(connection, squad.streams(), last.position)
    squad.head = Head(last.position, last.hash, last.recorded_at)
    return squad
