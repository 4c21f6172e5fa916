"""orchestrator: whether jobs may fire and agents be called."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from eventstore.events import OrchestratorStarted, OrchestratorStopped
from projections.projection import Projection, Row, Table, fixed_key

if TYPE_CHECKING:
    from eventstore.recorded import AnyRecorded
    from projections.projection import View

THE_ORCHESTRATOR = "squad"
"""The key of the only row of `orchestrator`."""


class OrchestratorRow(Row, frozen=True):
    """The orchestrator: running since `started_at`, or shut down since `stopped_at`."""

    name: str
    running: bool
    started_at: datetime | None
    stopped_at: datetime | None
    position: int


ORCHESTRATOR = Table[str, OrchestratorRow](
    "orchestrator",
    OrchestratorRow,
    key=("name",),
    types=("text", "boolean", "timestamptz", "timestamptz", "bigint"),
)

orchestrator = Projection("orchestrator", (ORCHESTRATOR,))


@orchestrator.on(OrchestratorStarted)
def _started(view: View, _: OrchestratorStarted, recorded: AnyRecorded) -> None:
    row = OrchestratorRow(
        THE_ORCHESTRATOR,
        running=True,
        started_at=recorded.recorded_at,
        stopped_at=None,
        position=recorded.position,
    )
    view.rows(ORCHESTRATOR).put(THE_ORCHESTRATOR, row)


@orchestrator.on(OrchestratorStopped, reads=(fixed_key(ORCHESTRATOR, THE_ORCHESTRATOR),))
def _stopped(view: View, _: OrchestratorStopped, recorded: AnyRecorded) -> None:
    before = view.rows(ORCHESTRATOR).get(THE_ORCHESTRATOR)
    row = OrchestratorRow(
        THE_ORCHESTRATOR,
        running=False,
        started_at=before.started_at if before else None,
        stopped_at=recorded.recorded_at,
        position=recorded.position,
    )
    view.rows(ORCHESTRATOR).put(THE_ORCHESTRATOR, row)
