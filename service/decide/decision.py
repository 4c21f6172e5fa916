"""What a decision is made of."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from msgspec import Struct

from eventstore.recorded import NewEvent
from service.refusals import Refusal


class At(NamedTuple):
    """Everything a decision takes from outside the log and the command."""

    now: datetime
    """The database's clock, never earlier than the log's last event."""
    new_id: Callable[[], str]
    """Gives a fresh UUIDv7 at each call."""


class Accepted(Struct, frozen=True, gc=False):
    """The command happens: these events, and what to answer besides their position."""

    events: list[NewEvent]
    reply: dict[str, Any]
    """Holds a `position` of its own where there are no events: the one that made things as they are."""


class Refused(Struct, frozen=True, gc=False):
    """The command does not happen. That it was refused may itself be worth remembering."""

    refusal: Refusal
    events: list[NewEvent] = []


Decision = Accepted | Refused
