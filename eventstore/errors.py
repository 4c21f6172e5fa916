"""What can go wrong with the log, in words of its own; `eventstore.translation` makes them of the driver's.

An exception's docstring is its message's beginning, so that what is raised and what is documented agree.
"""

from __future__ import annotations


class EventStoreError(Exception):
    """The event store failed."""

    def __init__(self, detail: str = "") -> None:
        summary = (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(f"{summary.rstrip('.')}: {detail}" if detail else summary)


class HeadMoved(EventStoreError):
    """Somebody else appended first; nothing of this append was stored."""

    def __init__(self, head: int) -> None:
        super().__init__(f"the log now ends at {head}")
        self.head = head


class ClockDrifted(EventStoreError):
    """The decision's clock and the database's differ too much; nothing was stored."""


class StoreUnavailable(EventStoreError):
    """The database cannot be reached; whether the statement took effect is unknown."""


class NotConnected(StoreUnavailable):
    """The database cannot be reached."""


class LogReplaced(StoreUnavailable):
    """The log was replaced: a standby took over that lacked its end, or an older backup was restored."""


class PoolerInTheWay(EventStoreError):
    """A pooler stands between here and the database."""


class StoreBusy(EventStoreError):
    """The database did not let us through; nothing was stored."""


class StoreRefused(EventStoreError):
    """The database refused what it was given; nothing was stored."""


class AtPosition(EventStoreError):
    """The log is not as it should be at one event."""

    def __init__(self, detail: str = "", position: int | None = None) -> None:
        super().__init__(detail)
        self.position = position
        """Of the event, where it is known."""


class UnknownEventType(AtPosition):
    """The log holds an event that this version of the software does not know."""


class UnreadableEvent(AtPosition):
    """A stored event does not have the shape that its type and schema version promise."""


class LogNotUnderstood(AtPosition):
    """The log holds an event that this version of the software cannot follow."""


class LogBroken(AtPosition):
    """The log is not whole."""


class ChainBroken(EventStoreError):
    """An event's hash does not follow from its content and its predecessor."""

    def __init__(self, position: int) -> None:
        super().__init__(f"at position {position}")
        self.position = position


class SchemaTooNew(EventStoreError):
    """The database's schema is newer than this version of the software."""


class SchemaTooOld(EventStoreError):
    """The database's schema is older than this version of the software."""


class NameTaken(EventStoreError):
    """The schema has something else by a name that is needed; nothing was changed."""


class TableUnlike(EventStoreError):
    """A table is not what schema.sql makes it."""


class SchemaMissing(EventStoreError):
    """The database has no squad schema, or an unfinished one."""


class RoleMayNot(EventStoreError):
    """The database role may not do what it is asked to."""


class WritesRefused(EventStoreError):
    """The database takes no writes: it is a standby, or a setting has all transactions read only."""


class UnsupportedServer(EventStoreError):
    """The database server cannot carry a squad."""


class CheckpointRefused(EventStoreError):
    """A checkpoint or its key cannot be used."""


class ImportRefused(EventStoreError):
    """Nothing was imported."""
