"""The inputs and results of decisions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from msgspec import Struct

from eventstore.recorded import NewEvent
from service.refusals import Refusal


class DecisionContext(NamedTuple):
    """Everything that a decision needs besides the state and the command."""

    now: datetime
    """The database's clock, never earlier than the log's last event."""
    new_id: Callable[[], str]
    """Returns a fresh UUIDv7 at each call."""
    actor: str
    """Who asked for the command, such as `agent:email_agent` or `system:scheduler`."""


class Accepted(Struct, frozen=True, gc=False):
    """The command is accepted, with these events and this answer, to which their position is added."""

    events: list[NewEvent]
    reply: dict[str, Any]
    """If there are no events, it contains a `position`: that of the event that led to the current state."""


class Refused(Struct, frozen=True, gc=False):
    """The command is refused. The refusal itself may be recorded as events."""

    refusal: Refusal
    events: list[NewEvent] = []


Decision = Accepted | Refused
