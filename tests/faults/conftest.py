from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.embedded import new_data_folder
from tests.support.trial import ROWS, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what came of the faults, as docs/operations.md has it."""
    if ROWS:
        terminalreporter.section("faults")
        for line in table(ROWS):
            terminalreporter.write_line(line)


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A folder for an embedded Postgres of the test's own."""
    with new_data_folder() as folder:
        yield folder
