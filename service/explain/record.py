"""The parts of an explanation, and the interface to the log that it is made from.

Narrators query a `LogQueries`. Its implementation is the log in Postgres or, in tests, a list.
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


class LoggedEvent(NamedTuple):
    """An event, and its place in the log."""

    event: AnyEvent | None
    """None if newer software wrote an event of a type that this version does not know."""
    at: Recorded


class Step(NamedTuple):
    """A cause or an effect, in one sentence."""

    position: int
    type: str
    recorded_at: datetime
    sentence: str


class Reason(NamedTuple):
    """One sentence of an explanation, the items it lists, and the positions of the events that show it."""

    sentence: str
    positions: tuple[int, ...] = ()
    items: tuple[str, ...] = ()


class Origin(NamedTuple):
    """Where it came from: a request, a typed command, a tick, the clock or the start of a service."""

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
    """The chain of `caused_by`, nearest first."""
    causes_go_on_at: int | None
    """The position at which the chain continues, if it is longer than `causes`."""
    origin: Origin
    outcome: tuple[Reason, ...]
    """For something that lasts, such as a run or a claim: how it ended, as far as the log goes."""
    effects: tuple[Step, ...]
    """The first events that name this one as their cause, as far as bounded reads find them."""
    effects_go_on: bool
    """Whether these reads found more than `effects` lists."""
    facts: dict[str, Any]
    """The content of the sentences as data; the fields depend on the type."""


class Use(NamedTuple):
    """Tokens used, or reserved, by one event."""

    position: int
    agent: str
    tokens: int


class Share(NamedTuple):
    """The tokens that an agent used, or holds reserved, and the number of events."""

    agent: str
    tokens: int
    events: int


class Spending(NamedTuple):
    """What a day's budget was spent on up to a position; each field sorted largest first."""

    uses: tuple[Use, ...] = ()
    """The largest uses; `used_by` covers all."""
    used_by: tuple[Share, ...] = ()
    held: tuple[Use, ...] = ()
    """The largest open reservations; `held_by` covers all."""
    held_by: tuple[Share, ...] = ()

    @property
    def used(self) -> int:
        """All tokens used."""
        return sum(share.tokens for share in self.used_by)

    @property
    def reserved(self) -> int:
        """All tokens reserved and not yet settled."""
        return sum(share.tokens for share in self.held_by)


class LogQueries(Protocol):
    """The log, through the few queries that are fast whatever its length."""

    async def event_at(self, position: int, /) -> LoggedEvent | None:
        """The event at a position."""

    async def events_at(self, positions: Sequence[int], /) -> list[LoggedEvent]:
        """The events at these positions, in the order of the log."""

    async def causes(self, position: int, limit: int, /) -> list[LoggedEvent]:
        """The event at `position`, its cause, the cause of that and so on, at most `limit` events."""

    async def first(self, stream: str, types: Sequence[str] = (), *, after: int = 0) -> LoggedEvent | None:
        """The first event of these types (of any, by default) in a stream after the position `after`."""

    async def last(self, stream: str, types: Sequence[str] = (), *, upto: int) -> LoggedEvent | None:
        """The last event of these types (of any, by default) in a stream up to the position `upto`."""

    async def earliest(
        self, stream: str, limit: int, types: Sequence[str] = (), *, after: int = 0
    ) -> list[LoggedEvent]:
        """The first events of these types in a stream after the position `after`, at most `limit`."""

    async def last_of(self, type_: str, *, upto: int) -> LoggedEvent | None:
        """The last event of a type in the log up to the position `upto`."""

    async def of_agent(self, agent: str, upto: int, limit: int) -> list[LoggedEvent]:
        """An agent's latest events up to the position `upto`, newest first."""

    async def before(self, moment: datetime) -> LoggedEvent | None:
        """The last event recorded before a moment."""

    async def of_request(self, item: LoggedEvent) -> list[LoggedEvent]:
        """The events near this one with the same correlation id, this one included, in order."""

    async def effects(self, item: LoggedEvent, limit: int) -> list[LoggedEvent]:
        """The first events that name this one as their cause, as far as bounded reads find them."""

    async def spending(self, began: LoggedEvent, upto: int, agent: str | None) -> Spending:
        """What the budget was spent on from `began`, the start of the day that was open at `upto`."""


def decode(recorded: Recorded) -> LoggedEvent:
    """Decode an event of the log, which newer software may have written."""
    try:
        return LoggedEvent(codec.decode(recorded), recorded)
    except UnknownEventType:
        return LoggedEvent(None, recorded)
