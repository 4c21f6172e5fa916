"""What an explanation is made of, and what it is made from.

Narrators ask a `Past` and tell what they found. They never learn what stands behind it: the log in Postgres
or, in tests, a list.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from eventstore import codec
from eventstore.errors import UnknownEventType
from eventstore.events import AnyEvent
from eventstore.recorded import Recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

OriginKind = Literal["request", "command", "run", "clock", "service", "other"]


class Told(NamedTuple):
    """An event, and its place in the log."""

    event: AnyEvent | None
    """None where newer software wrote an event that this one does not know."""
    at: Recorded


class Step(NamedTuple):
    """An event in one sentence: a cause, or an effect."""

    position: int
    type: str
    recorded_at: datetime
    sentence: str


class Reason(NamedTuple):
    """One sentence of an answer, what it lists, and the positions of the events that show it."""

    sentence: str
    positions: tuple[int, ...] = ()
    items: tuple[str, ...] = ()


class Origin(NamedTuple):
    """Where it began: a request, a command typed by somebody, a tick, the clock, the start of a service."""

    kind: OriginKind
    reasons: tuple[Reason, ...]
    facts: dict[str, Any]


class Explanation(NamedTuple):
    """What happened at a position, why, where it came from, and what followed."""

    position: int
    type: str
    recorded_at: datetime
    actor: str
    correlation_id: str
    summary: str
    reasons: tuple[Reason, ...]
    causes: tuple[Step, ...]
    """The chain of `caused_by`, the nearest first."""
    causes_go_on_at: int | None
    """Where the chain goes on, if it is longer than what is shown."""
    origin: Origin
    outcome: tuple[Reason, ...]
    """What became of it, as far as the log goes, where it is something that goes on."""
    effects: tuple[Step, ...]
    """Events that name this one as their cause, the first ones, as far as bounded reads show them."""
    facts: dict[str, Any]
    """What the sentences say, for programs; the fields depend on the type."""


class Use(NamedTuple):
    """Tokens that were used, or are reserved, by one event."""

    position: int
    agent: str
    tokens: int


class Share(NamedTuple):
    """What an agent used, or holds in reserve, by so many events."""

    agent: str
    tokens: int
    events: int


class Spending(NamedTuple):
    """What filled a day's budget up to some position; everything largest first."""

    uses: tuple[Use, ...] = ()
    """The largest; the shares hold them all."""
    used_by: tuple[Share, ...] = ()
    held: tuple[Use, ...] = ()
    """Reservations that had not ended, the largest; the shares hold them all."""
    held_by: tuple[Share, ...] = ()

    @property
    def used(self) -> int:
        """All that was used."""
        return sum(share.tokens for share in self.used_by)

    @property
    def reserved(self) -> int:
        """All that was reserved and not yet settled."""
        return sum(share.tokens for share in self.held_by)


class Past(Protocol):
    """The log, asked in the few ways that are fast however long it is."""

    async def one(self, position: int, /) -> Told | None:
        """The event at a position."""

    async def several(self, positions: Sequence[int], /) -> list[Told]:
        """The events at these positions, in the order of the log."""

    async def causes(self, position: int, limit: int, /) -> list[Told]:
        """The event at `position`, its cause, that one's cause and so on, at most `limit`."""

    async def first(self, stream: str, types: Sequence[str] = (), *, after: int = 0) -> Told | None:
        """A stream's first event of these types (any, where none is named) behind the position `after`."""

    async def last(self, stream: str, types: Sequence[str] = (), *, upto: int) -> Told | None:
        """A stream's last event of these types (any, where none is named) up to the position `upto`."""

    async def early(
        self, stream: str, limit: int, types: Sequence[str] = (), *, after: int = 0
    ) -> list[Told]:
        """A stream's first events of these types behind the position `after`, at most `limit`."""

    async def last_of(self, type_: str, *, upto: int) -> Told | None:
        """The log's last event of a type up to the position `upto`."""

    async def of_agent(self, agent: str, upto: int, limit: int) -> list[Told]:
        """An agent's latest events up to the position `upto`, the latest first."""

    async def before(self, moment: datetime) -> Told | None:
        """The last event that was recorded before a moment."""

    async def of_request(self, told: Told) -> list[Told]:
        """The events near this one that bear its correlation id, itself among them, in order."""

    async def effects(self, told: Told, limit: int) -> list[Told]:
        """The first events that name this one as their cause, as far as bounded reads show them."""

    async def spending(self, began: Told, upto: int, agent: str | None) -> Spending:
        """What filled the budget of the day that was open at `upto`, from its beginning."""


def told(recorded: Recorded) -> Told:
    """An event of the log, which may be newer than this software."""
    try:
        return Told(codec.decode(recorded), recorded)
    except UnknownEventType:
        return Told(None, recorded)
