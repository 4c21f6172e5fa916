from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.model.on_postgres import OnPostgres
from tests.model.process import simulated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.model.server import Server
    from tests.support.postgres import PostgresServer


@pytest.fixture(autouse=True)
def _processes_that_can_be_stopped() -> Iterator[None]:
    with simulated():
        yield


@pytest.fixture
def new_database(postgres: PostgresServer, _template: str) -> Iterator[Callable[[], Server]]:
    """Makes a database for each world; those that are left are gone in the end as well."""
    with ExitStack() as stack:
        yield lambda: OnPostgres(stack, postgres, _template)
