from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.model.on_postgres import OnPostgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.model.server import Server
    from tests.support.postgres import PostgresServer


@pytest.fixture
def new_database(postgres: PostgresServer, _template: str) -> Iterator[Callable[[], Server]]:
    """Makes a database of its own for each world, of those that are still there in the end as well."""
    with ExitStack() as stack:
        yield lambda: OnPostgres(stack, postgres, _template)
