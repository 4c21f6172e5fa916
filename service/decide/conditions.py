"""Changes on condition that the row has not changed since the caller read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.commands.base import UNCONDITIONAL
from service.decide.decision import Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from projections.emails import EmailRow
    from projections.tasks import TaskRow
    from service.commands import UpdateEmail, UpdateTask


def has_changed(row: TaskRow | EmailRow, command: UpdateTask | UpdateEmail) -> bool:
    """Whether the command names another position than that of the row's last change."""
    return command.if_position not in (UNCONDITIONAL, row.position)


def refuse_changed(what: str, row: TaskRow | EmailRow) -> Refused:
    """Return the refusal of a change whose condition does not hold; `what` is what to call the row."""
    detail = f"{what} {row.id} has changed since it was read; its last change is at position {row.position}"
    return Refused(Refusal("changed", detail, {"current_position": row.position}))
