"""Folds the log onto a squad in memory, page by page and in short slices, and loads what is still open.

Everything that needs the decision state of some moment uses this: startup, looking back, verification.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from time import monotonic
from typing import TYPE_CHECKING

from eventstore import codec, log, sealing
from eventstore.connection import closing_after
from eventstore.errors import EventStoreError, LogNotUnderstood, StoreUnavailable
from eventstore.events import AnyEvent
from eventstore.pages import FULL_EVENT, scan
from eventstore.recorded import Head
from eventstore.redaction import describe
from projections.projection import MissingRow
from service.history import recall, snapshots
from service.memory.draft import Draft
from service.memory.squad import Squad

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from eventstore.connection import Connection
    from eventstore.recorded import Recorded

STUCK_AFTER_SECONDS = 10.0
"""Timeout of a round trip; its connection is then cut."""

PAGE_EVENTS = 2_500
"""How many events are read at once: fewer than between snapshots, which are taken only between pages."""

SLICE_EVENTS = 500
"""How many of them are folded before yielding to other tasks: a few milliseconds."""

AfterPage = Callable[[], Awaitable[None]]

StoreSnapshot = Callable[[Squad, int], Awaitable[None]]
"""Stores a squad as a snapshot, given the log's head before the squad was read. Never raises."""

_log = logging.getLogger(__name__)


class BeyondTheLog(EventStoreError):
    """The log does not reach that far."""


class TookTooLong(EventStoreError):
    """The log could not be folded in time."""


def fold_page(squad: Squad, page: Sequence[Recorded]) -> list[AnyEvent]:
    """Fold consecutive events that follow the squad's head; `sealing.reveal` has already decrypted them.

    Returns:
        The decoded events.

    Raises:
        StoreUnavailable: they do not follow the head; the log was replaced under us.
        LogNotUnderstood: one of them cannot be folded. The squad is unchanged.
    """
    draft, events = Draft(squad, whole=True), list[AnyEvent]()
    for position, recorded in enumerate(page, squad.head.position + 1):
        if recorded.position != position:
            raise StoreUnavailable(f"position {position} is missing from the log")
        try:
            event = codec.decode(recorded)
            draft.apply(event, recorded)
        except Exception as fault:
            raise LogNotUnderstood(f"at position {position}, {type(fault).__name__}: {fault}") from fault
        events.append(event)
    if page:
        last = page[-1]
        draft.head = Head(last.position, last.hash, last.recorded_at)
    squad.merge(draft)
    return events


async def fold_pages(
    connection: Connection, squad: Squad, upto: int, after_page: AfterPage, *, rest: float = 0.0
) -> None:
    """Fold the events after the squad's head, page by page.

    Args:
        connection: to read from.
        squad: brought up to `upto`.
        upto: the last position to fold.
        after_page: called after each page; if it raises, folding stops. Its own queries on the connection
            wait until the next page has arrived.
        rest: how long to pause after each slice, as a multiple of the time that it took.

    Raises:
        BeyondTheLog: the log ends before `upto`.
        StoreUnavailable: the connection broke, or positions are missing from the log.
        LogNotUnderstood: an event cannot be folded.
    """
    if squad.head.position >= upto:
        return
    scanning = scan(connection, squad.head.position, upto, PAGE_EVENTS, row_format=FULL_EVENT)
    async with aclosing(scanning) as pages:
        while squad.head.position < upto:
            with closing_after(STUCK_AFTER_SECONDS, connection):
                stored = await anext(pages, None)
                page = await sealing.reveal(connection, stored or (), erased_types=sealing.UNUSED_BY_STATE)
            if not page:
                raise await _nothing_after(connection, squad.head.position)
            for start in range(0, len(page), SLICE_EVENTS):
                began = monotonic()
                fold_page(squad, page[start : start + SLICE_EVENTS])
                await asyncio.sleep(rest * (monotonic() - began))
            await after_page()


async def _nothing_after(connection: Connection, position: int) -> EventStoreError:
    """Return the error that says why the page after this position is empty."""
    with closing_after(STUCK_AFTER_SECONDS, connection):
        head = await log.head_position(connection)
    if head > position:
        return StoreUnavailable(f"position {position + 1} is missing from the log")
    return BeyondTheLog(f"it ends at position {position}")


async def fold_to(
    connection: Connection,
    squad: Squad,
    upto: int,
    known: int,
    *,
    store_snapshot: StoreSnapshot | None = None,
    deadline: float | None = None,
) -> None:
    """Fold the events after the squad's head, and load everything that is still open.

    Args:
        connection: to read from; it may be read-only.
        squad: brought up to `upto`.
        upto: the last position to fold.
        known: the log's head before any of the squad was read.
        store_snapshot: stores snapshots, so that nobody has to fold a long stretch twice.
        deadline: when to give up, by the monotonic clock.

    Raises:
        TookTooLong: the progress went to `store_snapshot`, so that the next attempt resumes from there.
        BeyondTheLog, StoreUnavailable, LogNotUnderstood: see `fold_pages`.
    """
    kept = squad.head.position

    async def after_page() -> None:
        nonlocal kept
        at = squad.head.position
        too_late = deadline is not None and monotonic() > deadline and at < upto
        if store_snapshot and (too_late or at - kept >= snapshots.distance(squad)):
            await load_open(connection, squad)
            await store_snapshot(squad, known)
            kept = at
        if too_late:
            raise TookTooLong(f"it is folded up to position {at} of {upto}")

    await fold_pages(connection, squad, upto, after_page)
    await load_open(connection, squad)


async def load_open(connection: Connection, squad: Squad) -> None:
    """Load what is open but not in memory: see `Squad.absent`.

    Raises:
        StoreUnavailable: the connection broke.
        LogNotUnderstood: its stream is incomplete.
    """
    if squad.absent:
        with closing_after(STUCK_AFTER_SECONDS, connection):
            load_absent(squad, await recall.read_revealed_streams(connection, sorted(squad.absent)))


def load_absent(squad: Squad, history: Iterable[Recorded]) -> None:
    """Load what is absent, given the events of its streams; events after the squad's head are ignored.

    Raises:
        LogNotUnderstood: a stream is incomplete.
    """
    draft = Draft(squad)
    try:
        recall.fold(draft, (event for event in history if event.position <= squad.head.position))
    except MissingRow as missing:
        raise LogNotUnderstood(str(missing)) from missing
    squad.merge(draft)


async def snapshot_writer(connection: Connection) -> StoreSnapshot | None:
    """Return a function that stores snapshots over this connection; None if it may not store them."""
    if not await snapshots.may_store(connection):
        return None

    async def store_snapshot(squad: Squad, known: int) -> None:
        try:
            await snapshots.store(connection, squad, known)
        except Exception as error:  # noqa: BLE001 - looking back works without the snapshot
            _log.warning(
                "a snapshot at position %d was not stored: %s", squad.head.position, describe(error)
            )

    return store_snapshot
