"""Hypothesis strategies for random commands and events.

Commands come from a small world, so that they conflict: three agents, a few resources, a budget of about a
thousand tokens. An id in a command is a placeholder for, say, the second newest operation;
`with_known_ids` replaces it by a real one.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st
from msgspec import Struct, structs

from eventstore.codec import EVENT_TYPES
from eventstore.events import (
    AnyEvent,
    EmailReceived,
    EmailStatus,
    JobDefinition,
    MessageSent,
    OperationStarted,
    Overlap,
    RequestAnswered,
    RunStarted,
    TaskCreated,
    TaskStatus,
    TokensReserved,
)
from eventstore.sealing import PERSONAL
from service import commands as do

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hypothesis.strategies import SearchStrategy

    from service.commands import AnyCommand

M = TypeVar("M", bound=Struct)

AGENTS = ("ann", "bob", "eve")
_BEGINS: Mapping[type[AnyEvent], str] = {
    RunStarted: "run_id",
    OperationStarted: "operation_id",
    TokensReserved: "reservation_id",
    MessageSent: "message_id",
    TaskCreated: "task_id",
    EmailReceived: "email_id",
}
"""The events that begin something, each with the field that holds its id."""

JOBS = ("poll", "sweep")
SENDERS = ("customer@example.org", "Zoë <zoe@example.org>")
KEY_IDS = ("2222222222", "3333333333", "4444444444")
LONGEST_JITTER = timedelta(seconds=100)

# Commands -----------------------------------------------------------------------------------------------

_agent = st.sampled_from(AGENTS)
_tokens = st.sampled_from((0, 1, 50, 90, 250, 400))
_model = st.sampled_from((None, None, "small", "large"))
_ttl = st.sampled_from((None, 0.1, 45.0, 600.0, 100_000.0))
_resources = st.dictionaries(st.sampled_from(("emailId", "orderId")), st.sampled_from("12"), min_size=1)
_PLACEHOLDERS = "00000000-0000-0000-0000-"
_placeholder = st.integers(0, 3).map((_PLACEHOLDERS + "{:012d}").format)
_payload = st.sampled_from((None, {"draft": 1}, {"draft": True}))

_policies = st.builds(
    do.SetPolicy,
    daily_tokens=st.sampled_from((None, None, 300, 1000)),
    agent_limits=st.sampled_from((None, None, {}, {"ann": 200}, {"ann": 600, "bob": 0})),
    reset_hour=st.sampled_from((None, 0, 6, 23)),
    timezone=st.sampled_from((None, "UTC", "Pacific/Auckland", "America/Havana", "Europe/Berlin")),
    conflict_window_seconds=st.sampled_from((None, None, 5.0, 300.0)),
    operation_timeout_seconds=st.sampled_from((None, 5.0, 60.0, 600.0)),
    idle_after_minutes=st.sampled_from((None, 0.5, 10.0)),
    offline_after_minutes=st.sampled_from((None, 5.0, 60.0)),
)
work: SearchStrategy[AnyCommand] = st.one_of(
    st.builds(
        do.StartOperation, agent=_agent, action=st.just("work"), resources=_resources, ttl_seconds=_ttl
    ),
    st.builds(do.RenewOperation, operation_id=_placeholder),
    st.builds(
        do.FinishOperation,
        operation_id=_placeholder,
        outcome=st.sampled_from(("succeeded", "failed")),
        tokens_used=st.none() | _tokens,
        model=_model,
    ),
)
spending: SearchStrategy[AnyCommand] = st.one_of(
    st.builds(do.ReserveTokens, agent=_agent, tokens=_tokens.filter(bool), ttl_seconds=_ttl),
    st.builds(do.SettleReservation, reservation_id=_placeholder, tokens_used=_tokens, model=_model),
    st.builds(do.ReleaseReservation, reservation_id=_placeholder),
    st.builds(do.RecordUsage, agent=_agent, tokens=_tokens),
    st.builds(do.RecordUsage, agent=_agent, input_tokens=_tokens, output_tokens=_tokens, model=_model),
)
_talk: SearchStrategy[AnyCommand] = st.one_of(
    st.builds(do.SendMessage, from_agent=_agent, to_agent=st.none() | _agent, message=st.just("hello")),
    st.builds(do.AcknowledgeMessage, message_id=_placeholder, agent=_agent),
    st.builds(do.Heartbeat, agent=_agent, status=st.sampled_from((None, "active", "idle", "offline"))),
    st.builds(do.RegisterAgent, name=_agent, role=st.sampled_from(("support", "sales"))),
)
board: SearchStrategy[AnyCommand] = st.one_of(
    st.builds(do.CreateTask, title=st.just("look"), status=st.sampled_from(get_args(TaskStatus))),
    st.builds(do.UpdateTask, task_id=_placeholder, status=st.sampled_from(get_args(TaskStatus))),
    st.builds(
        do.LogEmail,
        gmail_message_id=st.sampled_from(("g-1", "g-2", "g-3")),
        from_email=st.sampled_from(SENDERS),
        status=st.sampled_from(get_args(EmailStatus)),
        payload=_payload,
    ),
    st.builds(
        do.UpdateEmail,
        email_id=_placeholder,
        status=st.sampled_from(get_args(EmailStatus)),
        payload=_payload,
    ),
)
_forgetting: SearchStrategy[AnyCommand] = st.builds(
    do.ForgetSubject, subject=st.sampled_from((*SENDERS, "ZOE@example.org")) | _placeholder
)
_rule: SearchStrategy[AnyCommand] = st.one_of(
    _policies,
    st.builds(do.SetBudget, daily_tokens=st.sampled_from((300, 1000, 2000))),
    st.builds(do.StartOrchestrator, only_if_new=st.booleans()),
    st.builds(do.StopOrchestrator),
    st.builds(do.PassTime),
)
_key_id = st.sampled_from(KEY_IDS)
keys: SearchStrategy[AnyCommand] = st.one_of(
    # In days, so that all keys have expired when a history ends.
    st.builds(
        do.CreateKey,
        key_id=_key_id,
        digest=st.just("0" * 64),
        scope=st.just("operator"),
        expires_days=st.sampled_from((1, 7)),
    ),
    st.builds(
        do.CreateKey,
        key_id=_key_id,
        digest=st.just("1" * 64),
        scope=st.just("agent"),
        for_agent=_agent,
        expires_days=st.just(1),
    ),
    st.builds(do.NoteKeyUse, key_id=_key_id),
    st.builds(do.RevokeKey, key_id=_key_id),
)
first_policies = st.builds(do.SetPolicy, daily_tokens=st.sampled_from((300, 1000)))

_job, _runner = st.sampled_from(JOBS), st.sampled_from(("process-1", "process-1", "process-2"))


def _definitions(*schedules: tuple[str | None, float | None]) -> SearchStrategy[JobDefinition]:
    """Definitions of jobs with one of these schedules: a cron expression, or an interval in seconds."""
    return st.builds(
        lambda schedule, **fields: JobDefinition(cron=schedule[0], every_seconds=schedule[1], **fields),
        schedule=st.sampled_from(schedules),
        agent=st.none() | _agent,
        endpoint=st.just("/work"),
        task=st.none(),
        timezone=st.sampled_from(("UTC", "Australia/Lord_Howe")),
        tokens=st.sampled_from((0, 0, 90, 250)),
        timeout_seconds=st.just(10.0),
        retries=st.sampled_from((0, 1, 2)),
        overlap=st.sampled_from(get_args(Overlap)),
        catch_up_seconds=st.sampled_from((60.0, 300.0)),
        jitter_seconds=st.sampled_from((0.0, LONGEST_JITTER.total_seconds())),
        pause_on_failure=st.booleans(),
        enabled=st.sampled_from((True, True, True, False)),
        resources=st.none() | _resources,
    )


def _defining(definitions: SearchStrategy[JobDefinition]) -> SearchStrategy[AnyCommand]:
    sources = st.sampled_from(("default", "settings", "api", "api"))
    return st.builds(do.DefineJob, name=_job, source=sources, definition=definitions)


# Hours apart where pauses are long, so that all ticks missed in the longest history are recorded at once.
_seldom = _definitions((None, 7_200.0), ("30 */3 * * *", None), ("30 2,8,14 * * *", None))
_often = _definitions((None, 60.0), ("* * * * *", None), ("*/2 * * * *", None))

_claiming = st.builds(do.ClaimTick, name=_job, runner=_runner)
_taking_up = st.builds(do.TakeUpRun, run_id=_placeholder, runner=_runner)
_ending = st.builds(
    do.EndAttempt,
    run_id=_placeholder,
    runner=_runner,
    attempt=st.sampled_from((1, 1, 2, 3)),
    succeeded=st.booleans(),
    ours=st.booleans(),
    tokens_used=st.none() | _tokens,
    model=_model,
    answered=st.booleans(),
    report=st.just("so it went"),
)
_attending: tuple[SearchStrategy[AnyCommand], ...] = (
    st.builds(do.RunJob, name=_job, runner=st.none() | _runner),
    st.builds(do.RenewRun, run_id=_placeholder, runner=_runner),
    st.builds(do.PauseJob, name=_job, note=st.sampled_from((None, "holidays"))),
    st.builds(do.ResumeJob, name=_job),
    st.builds(do.RemoveJob, name=_job),
    st.builds(do.WithdrawJob, name=_job),
)
_seldom_jobs: SearchStrategy[AnyCommand] = st.one_of(
    _defining(_seldom), _claiming, _taking_up, _ending, *_attending
)


def _weighted(*choices: tuple[int, SearchStrategy[AnyCommand]]) -> SearchStrategy[AnyCommand]:
    """One of these strategies, by weight. (`one_of` counts a strategy once even if it is given twice.)"""
    tickets = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.sampled_from(tickets).flatmap(lambda strategy: strategy)


jobs: SearchStrategy[AnyCommand] = _weighted(
    (16, _claiming),
    (12, _ending),
    (6, _taking_up),
    (2, _defining(_often)),
    *((1, strategy) for strategy in _attending),
    (3, st.builds(do.ResumeJob, name=_job)),
    (1, st.builds(do.SetBudget, daily_tokens=st.sampled_from((300, 1000)))),
    (3, st.builds(do.StartOrchestrator)),
    (1, st.builds(do.StopOrchestrator)),
    (3, work),
)
"""Commands about jobs that tick every minute or two, their runs, and the claims that conflict with them."""

first_jobs: SearchStrategy[list[AnyCommand]] = st.lists(_defining(_often), min_size=1, max_size=3)

commands: SearchStrategy[AnyCommand] = st.one_of(
    work, spending, work, spending, _talk, board, _rule, _seldom_jobs, _forgetting, keys
)
"""Any command; work and spending more often than others."""

correspondence: SearchStrategy[AnyCommand] = _weighted((3, _talk), (6, board), (2, _forgetting))
"""Messages and e-mails, and the forgetting of their subjects."""


def with_known_ids(command: AnyCommand, known: Mapping[str, Sequence[str]]) -> AnyCommand:
    """Return the command with its placeholder replaced by a known id, if there is one of that kind."""
    for field in (*_BEGINS.values(), "subject"):
        placeholder = getattr(command, field, None)
        ids = known.get("message_id" if field == "subject" else field)
        if placeholder and placeholder.startswith(_PLACEHOLDERS) and ids:
            return command.model_copy(update={field: ids[-1 - int(placeholder[-12:]) % len(ids)]})
    return command


def collect_ids(event: AnyEvent, known: Mapping[str, list[str]]) -> None:
    """Add the id of what an event begins to the known ones, from which `with_known_ids` chooses."""
    if field := _BEGINS.get(type(event)):
        known[field].append(getattr(event, field))


# Events -------------------------------------------------------------------------------------------------

# What a command accepts: anything but U+0000 and halves of surrogate pairs.
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


def values_of(annotation: Any) -> SearchStrategy[Any]:
    """Values of a type, if it is one that events have fields of."""
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return _models(annotation)
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin in (Union, UnionType):
            return st.one_of(*map(values_of, arguments))
        case origin if origin is Literal:
            return st.sampled_from(arguments)
        case origin if origin is list:
            return st.lists(values_of(arguments[0]), max_size=4)
        case origin if origin is dict and arguments[1] is Any:
            return _json_object
        case origin if origin is dict:
            return st.dictionaries(*map(values_of, arguments), max_size=4)
        case _:
            raise TypeError(f"no strategy for {annotation}")


def _models(kind: type[M]) -> SearchStrategy[M]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: values_of(hints[name]) for name in kind.__struct_fields__})


events: SearchStrategy[AnyEvent] = st.one_of(*map(_models, EVENT_TYPES.values()))
"""Any event."""


def _answer(event: RequestAnswered, repeated: dict[str, Any]) -> RequestAnswered:
    return structs.replace(event, body={**event.body, **repeated})


sealed_events: SearchStrategy[AnyEvent] = st.one_of(
    *(_models(EVENT_TYPES[name]) for name in PERSONAL),
    st.builds(
        _answer,
        _models(RequestAnswered),
        st.fixed_dictionaries(
            {}, optional={"from_email": _text, "subject": st.none() | _text, "payload": _json_object}
        ),
    ),
)
"""Any event that contains personal data."""
