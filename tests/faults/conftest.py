from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.embedded import new_data_folder
from tests.support.trial import ROWS, Row, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_ROW = "row of the table of faults"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what came of the faults, as docs/operations.md has it."""
    # A test's rows are in the report of its end, which pytest files under no name where all is well.
    reports = terminalreporter.stats.get("", [])
    rows = [Row(*cells) for report in reports for name, cells in report.user_properties if name == _ROW]
    if rows:
        terminalreporter.section("faults")
        for line in table(rows):
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _rows(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Adds the test's rows to its report, which gets to the process that shows them."""
    ROWS.clear()
    yield
    for row in ROWS:
        record_property(_ROW, list(row))


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A folder for an embedded Postgres of the test's own."""
    with new_data_folder() as folder:
        yield folder
