"""The squad as it was after any event: the state in memory at that point, folded again from the log.

It starts from the nearest trusted snapshot and folds the events after it, with the same fold that every
process uses for its own state. Whether a snapshot is used affects how long this takes, never the result.

A moment means: after the last event recorded at or before it. What had expired by then but has no event
yet, such as a claim past its deadline, is shown as the log has it. Within the last second, an event may
still be in flight that will be recorded before the moment asked for.

It shares the event loop with everything else, so it folds a few hundred events at a time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore import log, lookup
from service.history import snapshots
from service.history.folding import BeyondTheLog, fold_pages, fold_to, load_open
from service.memory.squad import Squad

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventstore.connection import Connection
    from service.history.folding import StoreSnapshot

MAX_CLOCK_SKEW = timedelta(minutes=1)
"""How far a caller's clock may be ahead of the database's before its "now" counts as the future."""


class PastSquad(NamedTuple):
    """The squad as it was."""

    squad: Squad
    moment: datetime | None
    """The moment asked for, or that of the last event; None before the first event."""


class SnapshotFault(NamedTuple):
    """A snapshot that does not match the log."""

    position: int
    reason: str


async def squad_at(
    connection: Connection,
    at: int | datetime | None,
    *,
    store_snapshot: StoreSnapshot | None = None,
    within_seconds: float | None = None,
) -> PastSquad:
    """Return the squad as it was at a position or at a moment, or as it is at the log's head.

    Raises:
        BeyondTheLog: the position does not exist yet, or the moment is in the future.
        TookTooLong: what was folded went to `store_snapshot`; the next attempt resumes from there.
        StoreUnavailable: the connection broke, or positions are missing from the log.
        LogNotUnderstood: an event cannot be folded.
    """
    deadline = None if within_seconds is None else monotonic() + within_seconds
    if isinstance(at, datetime):
        now = await log.clock(connection)
        if at - now > MAX_CLOCK_SKEW:
            raise BeyondTheLog(
                f"{at.isoformat()} is in the future, it is {now.isoformat(timespec='seconds')}"
            )
        squad = await state_at(
            connection, await lookup.position_at(connection, at), store_snapshot, deadline
        )
        return PastSquad(squad, at)
    squad = await state_at(
        connection, await log.head_position(connection) if at is None else at, store_snapshot, deadline
    )
    return PastSquad(squad, squad.head.recorded_at)


async def state_at(
    connection: Connection,
    position: int,
    store_snapshot: StoreSnapshot | None = None,
    deadline: float | None = None,
) -> Squad:
    """Return the squad after the event at `position`, with everything open; 0 is before the first event.

    Args:
        connection: to read from; it may be read-only.
        position: at most the log's head.
        store_snapshot: stores snapshots where many events had to be folded.
        deadline: when to give up, by the monotonic clock.

    Raises:
        BeyondTheLog, TookTooLong, StoreUnavailable, LogNotUnderstood: see `squad_at`.
    """
    known = await log.head_position(connection)
    if position > known:
        raise BeyondTheLog(f"it ends at position {known}")
    squad = await snapshots.nearest(connection, position) or Squad()
    await fold_to(connection, squad, position, known, store_snapshot=store_snapshot, deadline=deadline)
    return squad


async def check_snapshots(
    connection: Connection, report: Callable[[int], None] = lambda _: None
) -> list[SnapshotFault]:
    """Fold the log from the beginning and compare every snapshot of this fold with it.

    Args:
        connection: to read from.
        report: called with the position reached.

    Raises:
        StoreUnavailable, LogNotUnderstood: the log itself is at fault.
    """
    faults: list[SnapshotFault] = []
    squad = Squad()
    head = await log.head_position(connection)

    async def after_page() -> None:
        report(squad.head.position)

    for position in await snapshots.positions(connection):
        await fold_pages(connection, squad, min(position, head), after_page)
        await load_open(connection, squad)
        try:
            stored = await snapshots.load(connection, position)
        except snapshots.InvalidSnapshot as distrusted:
            faults.append(SnapshotFault(position, str(distrusted)))
            continue
        if stored and (difference := _difference(stored, squad)):
            faults.append(SnapshotFault(position, difference))
    return faults


def _difference(stored: Squad, folded: Squad) -> str | None:
    """Return where a stored squad first differs from the folded one, by table and row; None if nowhere."""
    contents = {
        **{name: (rows, folded.tables[name]) for name, rows in stored.tables.items()},
        "versions of streams": (stored.versions, folded.versions),
        "claims": (stored.holders, folded.holders),
        "e-mails by Gmail id": (stored.gmail_ids, folded.gmail_ids),
    }
    for name, (ours, theirs) in contents.items():
        if ours != theirs:
            return f"{name} differs from the fold at {_first_difference(ours, theirs)!r}"
    return None


def _first_difference(ours: dict[Any, Any], theirs: dict[Any, Any]) -> Any:
    absent = object()
    return next(
        key
        for key in sorted(ours.keys() | theirs.keys(), key=str)
        if ours.get(key, absent) != theirs.get(key, absent)
    )
