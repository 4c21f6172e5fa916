"""What the database says, in words that tell whether to try again."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors as pg

from eventstore.errors import EventStoreError, StoreBusy, StoreRefused, StoreUnavailable
from eventstore.translation import translated


@pytest.mark.parametrize(
    ("error", "is_told_as"),
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
def test_an_error_is_told_by_what_became_of_the_statement(
    error: type[psycopg.Error], is_told_as: type[EventStoreError]
) -> None:
    assert type(translated(error("no more of that"))) is is_told_as
