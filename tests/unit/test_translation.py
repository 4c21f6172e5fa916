"""The driver's errors as errors of the event store, which say whether to retry."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors as pg

from eventstore.errors import EventStoreError, StoreBusy, StoreRefused, StoreUnavailable
from eventstore.translation import translated


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pg.ConnectionFailure, StoreUnavailable),
        (pg.AdminShutdown, StoreUnavailable),
        (pg.TooManyConnections, StoreUnavailable),
        (pg.LockNotAvailable, StoreBusy),
        (pg.DiskFull, StoreBusy),
        (pg.ConfigurationLimitExceeded, StoreBusy),
        (pg.ProgramLimitExceeded, StoreRefused),
        (pg.StatementTooComplex, StoreRefused),
        (pg.UniqueViolation, StoreRefused),
        (pg.UndefinedTable, EventStoreError),
    ],
)
def test_driver_error_is_translated_to_an_error_of_the_event_store(
    error: type[psycopg.Error], expected: type[EventStoreError]
) -> None:
    assert type(translated(error("no more of that"))) is expected
