"""Who may do what, decided like everything else: at the head of the log.

The door (`service.http.auth`) has looked at the key already, in the state that its process knew then. Here
it is looked at again, in the state that the command is decided on. So a key that was revoked in between, by
whichever process, brings about nothing any more, and whose operation an id means is never out of date.

An operator's key may ask for everything, an auditor's for nothing that would change anything. An agent's
may ask for what `_BY_AGENTS` names, as that agent and on what is its own; for everything else it may not,
so a new kind of command is an operator's until somebody decides otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventstore.events import AccessDenied, DenialCode
from eventstore.recorded import NewEvent
from projections.budgets import RESERVATIONS
from projections.emails import EMAILS
from projections.keys import ACCESS, KEYS, THE_SQUAD
from projections.operations import OPERATIONS
from projections.tasks import TASKS
from service import commands as do
from service.decide.decision import Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from service.callers import Caller
    from service.decide.decision import At
    from service.squad import State

INVALID = "the key is not valid: it is unknown, revoked or expired"
NEEDED = "a key is needed: Authorization: Bearer squad_..."

_BY_AGENTS = (
    do.RegisterAgent,
    do.Heartbeat,
    do.SendMessage,
    do.AcknowledgeMessage,
    do.StartOperation,
    do.RenewOperation,
    do.FinishOperation,
    do.ReserveTokens,
    do.SettleReservation,
    do.ReleaseReservation,
    do.RecordUsage,
    do.CreateTask,
    do.UpdateTask,
    do.LogEmail,
    do.UpdateEmail,
)
"""What agents may ask for."""


class _Denial(NamedTuple):
    code: DenialCode
    detail: str


def key_is_needed(state: State) -> bool:
    """Whether every request needs a key: there is one that nobody has revoked."""
    access = state.rows(ACCESS).get(THE_SQUAD)
    return access is not None and access.unrevoked_keys > 0


def judge(state: State, caller: Caller, command: do.AnyCommand, at: At) -> Refused | None:
    """Refuses a command that its caller may not ask for; None where it may. A denial is a fact."""
    if caller.key_id is None:
        return Refused(Refusal("unauthorized", NEEDED)) if key_is_needed(state) else None
    row = state.rows(KEYS).get(caller.key_id)
    if row is None or row.state != "active" or (row.expires_at is not None and row.expires_at <= at.now):
        return Refused(Refusal("unauthorized", INVALID))
    denial = _denial(state, caller, command)
    if denial is None:
        return None
    event = AccessDenied(
        key_id=row.id,
        agent=row.agent,
        code=denial.code,
        command=type(command).__name__,
        detail=denial.detail,
    )
    return Refused(Refusal(denial.code, denial.detail), [NewEvent(event, caused_by=row.position)])


def _denial(state: State, caller: Caller, command: do.AnyCommand) -> _Denial | None:
    match caller.scope:
        case "operator":
            return None
        case "auditor":
            return _Denial("not_allowed", "an auditor's key reads and changes nothing")
        case "agent":
            assert caller.agent
            return _denial_of_agent(state, caller.agent, command)


def _denial_of_agent(state: State, agent: str, command: do.AnyCommand) -> _Denial | None:
    if not isinstance(command, _BY_AGENTS):
        return _Denial("not_allowed", "this takes an operator's key")
    other: str | None
    match command:
        case do.RegisterAgent():
            other, what = command.name, "an agent registers nobody but itself"
        case do.RenewOperation() | do.FinishOperation():
            operation = state.rows(OPERATIONS).get(command.operation_id)
            other, what = operation and operation.agent, f"operation {command.operation_id} is another's"
        case do.SettleReservation() | do.ReleaseReservation():
            held = state.rows(RESERVATIONS).get(command.reservation_id)
            other, what = held and held.agent, f"reservation {command.reservation_id} is another's"
        case do.UpdateTask():
            task = state.rows(TASKS).get(command.task_id)
            other, what = task and task.assigned_agent, f"task {command.task_id} is another's"
        case do.LogEmail():
            other, what = command.handled_by, "an agent handles e-mails in nobody's name but its own"
        case do.UpdateEmail():
            return _denial_of_email(state, agent, command)
        case do.CreateTask():
            # Whom a task is for is a wish; everybody may have one.
            return None
        case _:
            other, what = command.acting_agent, "an agent acts as nobody but itself"
    return _unless_own(agent, other, what)


def _denial_of_email(state: State, agent: str, command: do.UpdateEmail) -> _Denial | None:
    email = state.rows(EMAILS).get(command.email_id)
    handled_by = email and email.handled_by
    return _unless_own(agent, handled_by, f"e-mail {command.email_id} is another's") or _unless_own(
        agent, command.handled_by, "an agent handles e-mails in nobody's name but its own"
    )


def _unless_own(agent: str, other: str | None, what: str) -> _Denial | None:
    if other in (None, agent):
        return None
    return _Denial("wrong_agent", f"this is a key of {agent!r}, and {what}")
