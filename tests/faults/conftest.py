from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.embedded import new_data_folder
from tests.support.trial import PROPERTY, ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _rows(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Adds the test's rows to its report, which gets to the process that shows them."""
    ROWS.clear()
    yield
    for row in ROWS:
        record_property(PROPERTY, list(row))


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A folder for an embedded Postgres of the test's own."""
    with new_data_folder() as folder:
        yield folder
