"""What the log means: the folds, and the read tables that they maintain.

A projection is a set of tables with handlers that define what each kind of event does to their rows. The
handlers are pure, and nothing else defines that. `Projector` runs them over the log and writes the changed
rows and the position in one transaction; the decision state runs the same handlers in memory.

Import `PROJECTIONS` for all of them, in a fixed order, and `HANDLERS` for the handlers by kind of event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventstore.codec import EVENT_TYPES
from eventstore.events import AccessDenied, AppendAbandoned, Event, RequestAnswered
from projections.agents import agents
from projections.budgets import budgets
from projections.emails import emails
from projections.jobs import jobs
from projections.keys import access, keys
from projections.messages import messages
from projections.operations import operations
from projections.orchestrator import orchestrator
from projections.projection import Handler, Projection, Table, View
from projections.tasks import tasks
from projections.usage import usage

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["HANDLERS", "PROJECTIONS", "WITHOUT_ROWS", "Projection", "Table", "View", "handlers_of"]

PROJECTIONS: tuple[Projection, ...] = (
    agents,
    messages,
    operations,
    budgets,
    usage,
    tasks,
    emails,
    jobs,
    keys,
    access,
    orchestrator,
)

WITHOUT_ROWS: frozenset[type[Event]] = frozenset({RequestAnswered, AppendAbandoned, AccessDenied})
"""Events that change no row, listed explicitly."""


def handlers_of(projections: Iterable[Projection]) -> dict[type[Event], tuple[Handler, ...]]:
    """Return the handlers of each kind of event in these projections, in their order."""
    chosen = tuple(projections)
    return {
        kind: tuple(projection.handlers[kind][0] for projection in chosen if kind in projection.handlers)
        for kind in EVENT_TYPES.values()
    }


HANDLERS = handlers_of(PROJECTIONS)
"""The handlers of each kind of event, in all projections."""

_unhandled = {kind for kind, handlers in HANDLERS.items() if not handlers} - WITHOUT_ROWS
if _unhandled:
    raise TypeError(
        f"no projection handles {sorted(kind.type for kind in _unhandled)}, and WITHOUT_ROWS lacks them"
    )
