"""The driver's errors into the event store's, once, by class and SQLSTATE."""

from __future__ import annotations

import re

import psycopg
from psycopg import errors as pg

from eventstore.errors import EventStoreError, RoleMayNot, StoreBusy, StoreRefused, StoreUnavailable


def translated(error: psycopg.Error) -> EventStoreError:
    """The event store's own error for one of the driver's, chosen by class and SQLSTATE."""
    text = first_line(error)
    match error:
        case pg.LockNotAvailable() | pg.QueryCanceled() | pg.DeadlockDetected() | pg.SerializationFailure():
            return StoreBusy(text)
        case pg.DiskFull() | pg.OutOfMemory() | pg.ConfigurationLimitExceeded():
            # The server's own word that the statement failed. Where it cannot even say so, it hangs up.
            return StoreBusy(text)
        case pg.ProgramLimitExceeded() | pg.StatementTooComplex():
            # Such as a text that is too long for an index: it will be so the next time, too.
            return StoreRefused(text)
        case pg.ReadOnlySqlTransaction() | pg.IdleInTransactionSessionTimeout() | pg.TransactionTimeout():
            # A standby that nobody promoted yet, and sessions that the server ended.
            return StoreUnavailable(text)
        case pg.InsufficientPrivilege():
            return RoleMayNot(text)
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return StoreUnavailable(text)
        case psycopg.DataError():
            # The server repeats the value that it could not read.
            return StoreRefused(text.partition('"')[0].rstrip(" :"))
        case psycopg.IntegrityError() | psycopg.NotSupportedError():
            return StoreRefused(text)
        case _:
            return EventStoreError(text)


def first_line(error: psycopg.Error) -> str:
    """What the driver says of an error, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def why_not_connected(error: psycopg.OperationalError) -> str:
    """Why no connection was made, in one line: what each server said, where several were tried.

    The driver says first what the last one did, which may be a standby that did nothing but pass us on.
    """
    tried = [line.removeprefix("- ") for line in str(error).splitlines() if line.startswith("- host: ")]
    # What the driver puts before tells once more which server that was.
    said = [re.sub(r"^.*?: connection (failed|is bad): ", "", line) for line in tried]
    return "; ".join(dict.fromkeys(said)) or first_line(error)


class _Translating:
    """Holds nothing, so that one is enough for everybody."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, psycopg.Error):
            raise translated(error) from error


_TRANSLATING = _Translating()


def translating() -> _Translating:
    """Turns the driver's errors into the event store's on their way out of a block."""
    return _TRANSLATING
