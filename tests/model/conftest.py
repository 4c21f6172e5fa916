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
    """Create a database for each world; those still there at the end are dropped."""
    with ExitStack() as stack:
        yield lambda: OnPostgres(stack, postgres, _template)
