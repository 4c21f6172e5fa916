"""The errors of the event store. `eventstore.translation` maps the driver's errors to them.

An exception's message begins with its docstring, so that what is raised and what is documented agree.
"""

from __future__ import annotations


class EventStoreError(Exception):
    """The event store failed."""

    def __init__(self, detail: str = "") -> None:
        summary = (type(self).__doc__ or "").strip().splitlines()[0].rstrip(".")
        summary = summary[:1].lower() + summary[1:]
        super().__init__(f"{summary}: {detail}" if detail else summary)


class HeadMoved(EventStoreError):
    """Another writer appended first; nothing was stored."""

    def __init__(self, head: int) -> None:
        super().__init__(f"the log now ends at {head}")
        self.head = head


class ClockDrifted(EventStoreError):
    """The clock of the decision and that of the database differ too much; nothing was stored."""


class StoreUnavailable(EventStoreError):
    """The database cannot be reached; whether the statement took effect is unknown."""


class NotConnected(StoreUnavailable):
    """The database cannot be reached."""


class LogReplaced(StoreUnavailable):
    """The log was replaced: a standby that lacked its end took over, or an older backup was restored."""


class PoolerMisconfigured(EventStoreError):
    """The connection goes through a pooler."""


class StoreBusy(EventStoreError):
    """The database is busy or out of resources; nothing was stored."""


class StoreRefused(EventStoreError):
    """The database refused what it was given; nothing was stored."""


class AtPosition(EventStoreError):
    """An event of the log is faulty."""

    def __init__(self, detail: str = "", position: int | None = None) -> None:
        super().__init__(detail)
        self.position = position
        """The position of the event, if known."""


class UnknownEventType(AtPosition):
    """The log holds an event that this version of the software does not know."""


class UnreadableEvent(AtPosition):
    """A stored event does not match its type and schema version."""


class LogNotUnderstood(AtPosition):
    """The log holds an event that this version of the software cannot apply."""


class LogBroken(AtPosition):
    """The log is incomplete."""


class ChainBroken(EventStoreError):
    """An event's hash does not match its content and the previous hash."""

    def __init__(self, position: int) -> None:
        super().__init__(f"at position {position}")
        self.position = position


class SchemaTooNew(EventStoreError):
    """The database's schema is newer than this version of the software."""


class SchemaTooOld(EventStoreError):
    """The database's schema is older than this version of the software."""


class NameTaken(EventStoreError):
    """A name that is needed is already taken in the schema; nothing was changed."""


class TableMismatch(EventStoreError):
    """A table is not as schema.sql defines it."""


class SchemaMissing(EventStoreError):
    """The database has no squad schema, or an incomplete one."""


class PermissionDenied(EventStoreError):
    """The database role lacks a privilege."""


class WritesRefused(EventStoreError):
    """The database accepts no writes: it is a standby, or a setting makes all transactions read-only."""


class UnsupportedServer(EventStoreError):
    """The database server is not supported."""


class CheckpointRefused(EventStoreError):
    """A checkpoint or its key cannot be used."""


class ImportRefused(EventStoreError):
    """Nothing was imported."""
