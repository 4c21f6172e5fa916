"""Fault injection under load, and its result: a row of the table in docs/operations.md.

Every trial ends with the same checks of the log: it has every acknowledged write, none of them twice, its
positions have no gaps, its hash chain verifies, and the tables are a fold of it. There is also a time
limit: that many seconds after the fault has ended (or after it occurred, if it is permanent), the services
must be ready and answer again, without intervention.
"""

from __future__ import annotations

import contextlib
from functools import reduce
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from tests.support.load import LogComparison
from tests.support.verify import assert_log_is_sound, assert_tables_equal_fold, projected_to_head
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from tests.support.load import Load
    from tests.support.process import ServiceProcess

CLIENTS = 16
"""Enough for several commands in every batch; two cores also have to run the service and the checks."""

_WARM_UP_ANSWERS = 200
_RECOVERED_AFTER_ANSWERS = 50


class Row(NamedTuple):
    """A row of the table."""

    fault: str
    load: str
    acknowledged: int
    lost: int
    doubled: int
    ready_seconds: float
    within_seconds: float

    def cells(self) -> list[str]:
        """The cells of the row, as the table shows them."""
        return [
            self.fault,
            self.load,
            f"{self.acknowledged:,}",
            str(self.lost),
            str(self.doubled),
            f"{self.ready_seconds:.1f}",
            f"{self.within_seconds:g}",
        ]


ROWS: list[Row] = []
"""The results of the trials in this run."""

PROPERTY = "row of the table of faults"
"""The name under which a test's report carries its rows to the process that shows them."""

HEADINGS = ("fault", "load", "acknowledged", "lost", "doubled", "ready after, s", "bound, s")


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of Markdown."""
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *(row.cells() for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


class Trial:
    """One fault, from the load before it to the checks after it.

    Args:
        fault: the fault, as the table names it.
        within_seconds: the time limit for recovery.
        loads: the clients.
    """

    def __init__(self, fault: str, within_seconds: float, *loads: Load) -> None:
        self.fault = fault
        self.within_seconds = within_seconds
        self.loads = loads
        self.ready_seconds = 0.0
        """The longest recovery."""
        self._rate = 0.0
        self._clients = 0
        self._fault_ended = monotonic()

    @contextlib.asynccontextmanager
    async def running(self, clients: int = CLIENTS) -> AsyncIterator[None]:
        """Run the loads for the duration of the block, which starts once requests are answered."""
        async with contextlib.AsyncExitStack() as stack:
            for load in self.loads:
                await stack.enter_async_context(load.running(clients))
            self._clients = clients * len(self.loads)
            for load in self.loads:
                await load.wait_for_answers(_RECOVERED_AFTER_ANSWERS)
            started = monotonic()
            for load in self.loads:
                await load.wait_for_answers(_WARM_UP_ANSWERS)
            self._rate = _WARM_UP_ANSWERS * len(self.loads) / (monotonic() - started)
            yield

    @contextlib.contextmanager
    def fault_injection(self) -> Iterator[None]:
        """Mark the block during which the fault lasts; the time limit runs from its end."""
        yield
        self._fault_ended = monotonic()

    async def wait_until_recovered(self, *services: ServiceProcess) -> None:
        """Wait until the services are ready and the loads are answered, within the time limit."""
        for load in self.loads:
            await load.wait_for_answers(_RECOVERED_AFTER_ANSWERS, within_seconds=self._left())
        for service in services:
            await eventually(service.is_ready, within_seconds=self._left(), describe="the service is ready")
        self.ready_seconds = max(self.ready_seconds, monotonic() - self._fault_ended)
        assert self.ready_seconds <= self.within_seconds

    async def verify(self, dsn: str) -> None:
        """Check the log and the tables against the clients' answers, and add the row."""
        await eventually(lambda: projected_to_head(dsn), describe="the tables are at the head")
        events = await assert_log_is_sound(dsn)
        comparison = reduce(LogComparison.plus, (load.compare(events) for load in self.loads))
        row = Row(
            fault=self.fault,
            load=f"{self._clients} clients, {self._rate:,.0f}/s",
            acknowledged=comparison.acknowledged,
            lost=len(comparison.lost),
            doubled=len(comparison.doubled),
            ready_seconds=self.ready_seconds,
            within_seconds=self.within_seconds,
        )
        ROWS.append(row)
        comparison.assert_consistent()
        assert await assert_tables_equal_fold(dsn) > 0

    def _left(self) -> float:
        return max(0.1, self._fault_ended + self.within_seconds - monotonic())
