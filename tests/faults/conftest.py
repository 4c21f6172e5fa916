from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.embedded import new_data_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A folder for an embedded Postgres of the test's own."""
    with new_data_folder() as folder:
        yield folder
