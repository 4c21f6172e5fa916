"""Translate the driver's errors to those of the event store, by class and SQLSTATE."""

from __future__ import annotations

import re

import psycopg
from psycopg import errors as pg

from eventstore.errors import EventStoreError, PermissionDenied, StoreBusy, StoreRefused, StoreUnavailable


def translated(error: psycopg.Error) -> EventStoreError:
    """Return the event store's error for one of the driver's."""
    text = first_line(error)
    match error:
        case pg.LockNotAvailable() | pg.QueryCanceled() | pg.DeadlockDetected() | pg.SerializationFailure():
            return StoreBusy(text)
        case pg.DiskFull() | pg.OutOfMemory() | pg.ConfigurationLimitExceeded():
            # The server says that the statement failed. If it cannot even do that, the connection breaks.
            return StoreBusy(text)
        case pg.ProgramLimitExceeded() | pg.StatementTooComplex():
            # Such as a text that is too long for an index: a retry would fail, too.
            return StoreRefused(text)
        case pg.ReadOnlySqlTransaction() | pg.IdleInTransactionSessionTimeout() | pg.TransactionTimeout():
            # A standby that was not promoted yet, and sessions that the server ended.
            return StoreUnavailable(text)
        case pg.InsufficientPrivilege():
            return PermissionDenied(text)
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return StoreUnavailable(text)
        case psycopg.DataError():
            # The server's message repeats the value that it could not read.
            return StoreRefused(text.partition('"')[0].rstrip(" :"))
        case psycopg.IntegrityError() | psycopg.NotSupportedError():
            return StoreRefused(text)
        case _:
            return EventStoreError(text)


def first_line(error: psycopg.Error) -> str:
    """Return the first line of the driver's message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def why_not_connected(error: psycopg.OperationalError) -> str:
    """Return why no connection was made, in one line: the error of each server, if several were tried.

    The first line of the driver's message is about the last server, which may only be a skipped standby.
    """
    tried = [line.removeprefix("- ") for line in str(error).splitlines() if line.startswith("- host: ")]
    # The prefix that the driver adds only repeats which server it was.
    said = [re.sub(r"^.*?: connection (failed|is bad): ", "", line) for line in tried]
    return "; ".join(dict.fromkeys(said)) or first_line(error)


class _Translating:
    """Has no state, so one instance is enough."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, psycopg.Error):
            raise translated(error) from error


_TRANSLATING = _Translating()


def translating() -> _Translating:
    """Translate the driver's errors to the event store's as they leave a block."""
    return _TRANSLATING
