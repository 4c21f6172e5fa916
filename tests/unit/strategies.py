"""Commands and events at random.

Commands come from a small world, so that they get in each other's way: three agents, a few resources, a
budget of about a thousand. An id in a command is a wish for, say, the second newest operation; `aimed`
grants it.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from eventstore.codec import EVENT_TYPES
from eventstore.events import AnyEvent, EmailStatus, TaskStatus
from service import commands as do

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hypothesis.strategies import SearchStrategy

    from service.commands import AnyCommand

AGENTS = ("ann", "bob", "eve")
ID_FIELDS = ("operation_id", "reservation_id", "message_id", "task_id", "email_id")

# Commands -----------------------------------------------------------------------------------------------

_agent = st.sampled_from(AGENTS)
_tokens = st.sampled_from((0, 1, 50, 90, 250, 1100))
_ttl = st.sampled_from((None, None, 0.1, 45.0, 600.0, 600.0, 100_000.0))
_resources = st.dictionaries(st.sampled_from(("emailId", "orderId")), st.sampled_from("12"), min_size=1)
_wish = st.integers(0, 3).map("00000000-0000-0000-0000-{:012d}".format)
_payload = st.sampled_from((None, {"draft": 1}, {"draft": True}))

policies = st.builds(
    do.SetPolicy,
    daily_tokens=st.sampled_from((None, None, 300, 1000, 5000)),
    agent_limits=st.sampled_from((None, None, {}, {"ann": 200}, {"ann": 600, "bob": 0})),
    reset_hour=st.sampled_from((None, 0, 6, 23)),
    timezone=st.sampled_from((None, "UTC", "Pacific/Auckland", "America/Havana", "Europe/Berlin")),
    conflict_window_seconds=st.sampled_from((None, 5.0, 30.0, 300.0)),
    operation_timeout_seconds=st.sampled_from((None, 5.0, 60.0, 600.0)),
    idle_after_minutes=st.sampled_from((None, 0.5, 10.0)),
    offline_after_minutes=st.sampled_from((None, 5.0, 60.0)),
)
_work: SearchStrategy[AnyCommand] = st.one_of(
    st.builds(
        do.StartOperation, agent=_agent, action=st.just("work"), resources=_resources, ttl_seconds=_ttl
    ),
    st.builds(do.RenewOperation, operation_id=_wish),
    st.builds(do.RenewOperation, operation_id=_wish),
    st.builds(
        do.FinishOperation,
        operation_id=_wish,
        outcome=st.sampled_from(("succeeded", "failed")),
        tokens_used=st.none() | _tokens,
    ),
)
_spending: SearchStrategy[AnyCommand] = st.one_of(
    st.builds(do.ReserveTokens, agent=_agent, tokens=_tokens.filter(bool), ttl_seconds=_ttl),
    st.builds(do.SettleReservation, reservation_id=_wish, tokens_used=_tokens),
    st.builds(do.ReleaseReservation, reservation_id=_wish),
    st.builds(do.RecordUsage, agent=_agent, tokens=_tokens),
)
_talk: SearchStrategy[AnyCommand] = st.one_of(
    st.builds(do.SendMessage, from_agent=_agent, to_agent=st.none() | _agent, message=st.just("hello")),
    st.builds(do.AcknowledgeMessage, message_id=_wish, agent=_agent),
    st.builds(do.Heartbeat, agent=_agent, status=st.sampled_from((None, "active", "idle", "offline"))),
    st.builds(do.RegisterAgent, name=_agent, role=st.sampled_from(("support", "sales"))),
)
_board: SearchStrategy[AnyCommand] = st.one_of(
    st.builds(do.CreateTask, title=st.just("look"), status=st.sampled_from(get_args(TaskStatus))),
    st.builds(do.UpdateTask, task_id=_wish, status=st.sampled_from(get_args(TaskStatus))),
    st.builds(
        do.LogEmail,
        gmail_message_id=st.sampled_from(("g-1", "g-2", "g-3")),
        from_email=st.just("customer@example.org"),
        status=st.sampled_from(get_args(EmailStatus)),
        payload=_payload,
    ),
    st.builds(
        do.UpdateEmail, email_id=_wish, status=st.sampled_from(get_args(EmailStatus)), payload=_payload
    ),
)
_rule: SearchStrategy[AnyCommand] = st.one_of(
    policies,
    st.builds(do.SetBudget, daily_tokens=st.sampled_from((300, 1000, 2000))),
    st.builds(do.StartOrchestrator, only_if_new=st.booleans()),
    st.builds(do.StopOrchestrator),
    st.builds(do.PassTime),
)
commands: SearchStrategy[AnyCommand] = st.one_of(_work, _spending, _work, _spending, _talk, _board, _rule)
"""Any command, work and spending more often than others."""


def aimed(command: AnyCommand, known: Mapping[str, Sequence[str]]) -> AnyCommand:
    """The command with its wish for an id granted, where anything of the kind is known."""
    for field in ID_FIELDS:
        wish = getattr(command, field, None)
        if wish and (ids := known.get(field)):
            return command.model_copy(update={field: ids[-1 - int(wish[-12:]) % len(ids)]})
    return command


# Events -------------------------------------------------------------------------------------------------

# What a command lets through: anything but U+0000 and halves of surrogate pairs.
_text = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
_whole = st.integers(-(2**63), 2**63 - 1)
_real = st.floats(allow_nan=False, allow_infinity=False)
_json_object = st.dictionaries(
    _text,
    st.recursive(
        st.none() | st.booleans() | _whole | _real | _text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
_SIMPLE: dict[Any, SearchStrategy[Any]] = {
    str: _text,
    int: _whole,
    float: _real,
    bool: st.booleans(),
    NoneType: st.none(),
    date: st.dates(),
    datetime: st.datetimes(timezones=st.just(UTC)),
}


def _values_of(annotation: Any) -> SearchStrategy[Any]:
    """Values of a field's type, as far as events have such fields."""
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin in (Union, UnionType):
            return st.one_of(*map(_values_of, arguments))
        case origin if origin is Literal:
            return st.sampled_from(arguments)
        case origin if origin is list:
            return st.lists(_values_of(arguments[0]), max_size=4)
        case origin if origin is dict and arguments[1] is Any:
            return _json_object
        case origin if origin is dict:
            return st.dictionaries(*map(_values_of, arguments), max_size=4)
        case _:
            raise TypeError(f"no strategy for {annotation}")


def _events_of(kind: type[AnyEvent]) -> SearchStrategy[AnyEvent]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: _values_of(hints[name]) for name in kind.model_fields})


events: SearchStrategy[AnyEvent] = st.one_of(*map(_events_of, EVENT_TYPES.values()))
"""Any event."""
