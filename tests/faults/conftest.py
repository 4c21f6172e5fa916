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
    """Add the test's rows to its report, which is sent to the process that shows them."""
    ROWS.clear()
    yield
    for row in ROWS:
        record_property(PROPERTY, list(row))


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A folder for the test's own embedded Postgres."""
    with new_data_folder() as folder:
        yield folder
