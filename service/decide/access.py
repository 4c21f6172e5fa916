"""Authorization, decided like everything else: at the head of the log.

The HTTP layer (`service.http.auth`) has already checked the key, against its process's state at that time.
Here it is checked again, against the state that the command is decided on. So a key that was revoked in
between, by whichever process, no longer has any effect, and who owns an operation is never out of date.

An operator's key allows every command, an auditor's none. An agent's key allows the commands in
`_AGENT_CHECKS`, as that agent and on what belongs to it, and nothing else: a new kind of command needs an
operator's key until it is added there.

A change whose `if_position` is out of date is left to its decision, which refuses it whoever owns the row
by now: an agent that comes too late for a free task has not tried to change another's.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from eventstore.events import AccessDenied, DenialCode
from eventstore.recorded import NewEvent
from projections.budgets import RESERVATIONS
from projections.emails import EMAILS
from projections.keys import ACCESS, KEYS, THE_SQUAD
from projections.operations import OPERATIONS
from projections.tasks import TASKS
from service import commands as do
from service.decide.conditions import has_changed
from service.decide.decision import Refused
from service.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from service.callers import Caller
    from service.decide.decision import DecisionContext
    from service.memory.state import State

KEY_INVALID = "the key is not valid: it is unknown, revoked or expired"
KEY_REQUIRED = "this requires a key: Authorization: Bearer squad_..."


class _Denial(NamedTuple):
    code: DenialCode
    detail: str


def is_key_required(state: State) -> bool:
    """Whether every request needs a key: that is so while a key exists that was not revoked."""
    access = state.rows(ACCESS).get(THE_SQUAD)
    return access is not None and access.unrevoked_keys > 0


def authorize(state: State, caller: Caller, command: do.AnyCommand, at: DecisionContext) -> Refused | None:
    """Return the refusal of a command that its caller may not give, else None. A denial is an event."""
    if caller.key_id is None:
        return Refused(Refusal("unauthorized", KEY_REQUIRED)) if is_key_required(state) else None
    row = state.rows(KEYS).get(caller.key_id)
    if row is None or row.state != "active" or (row.expires_at is not None and row.expires_at <= at.now):
        return Refused(Refusal("unauthorized", KEY_INVALID))
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
            return _Denial("not_allowed", "an auditor's key can only read")
        case "agent":
            assert caller.agent
            return _denial_of_agent(state, caller.agent, command)


def _denial_of_agent(state: State, agent: str, command: do.AnyCommand) -> _Denial | None:
    # A table, not `match`: class patterns are slow for pydantic models, and every command passes here.
    check = _AGENT_CHECKS.get(type(command))
    if check is None:
        return _Denial("not_allowed", "this requires an operator's key")
    return check(state, agent, command)


def _deny_unless_own(agent: str, other: str | None, what: str) -> _Denial | None:
    if other is None or other == agent:
        return None
    return _Denial("wrong_agent", f"this is a key of {agent!r}, and {what}")


def _as_itself(_: State, agent: str, command: do.AnyCommand) -> _Denial | None:
    other = command.acting_agent
    return _deny_unless_own(agent, other, f"an agent may act only as itself, not as {other!r}")


def _own_name(_: State, agent: str, command: do.RegisterAgent) -> _Denial | None:
    what = f"an agent may register only itself, not {command.name!r}"
    return _deny_unless_own(agent, command.name, what)


def _own_operation(
    state: State, agent: str, command: do.RenewOperation | do.FinishOperation
) -> _Denial | None:
    row = state.rows(OPERATIONS).get(command.operation_id)
    what = f"operation {command.operation_id} belongs to another agent"
    return _deny_unless_own(agent, row.agent if row else None, what)


def _own_reservation(
    state: State, agent: str, command: do.SettleReservation | do.ReleaseReservation
) -> _Denial | None:
    row = state.rows(RESERVATIONS).get(command.reservation_id)
    what = f"reservation {command.reservation_id} belongs to another agent"
    return _deny_unless_own(agent, row.agent if row else None, what)


def _any_task(_state: State, _agent: str, _command: do.CreateTask) -> _Denial | None:
    """Allow it: any agent may create a task for any other."""
    return None


def _own_task(state: State, agent: str, command: do.UpdateTask) -> _Denial | None:
    row = state.rows(TASKS).get(command.task_id)
    owner = row.assigned_agent if row and not has_changed(row, command) else None
    return _deny_unless_own(agent, owner, f"task {command.task_id} is assigned to another agent")


def _own_handling(_: State, agent: str, command: do.LogEmail | do.UpdateEmail) -> _Denial | None:
    other = command.handled_by
    what = f"an agent may handle e-mails only in its own name, not in that of {other!r}"
    return _deny_unless_own(agent, other, what)


def _own_email(state: State, agent: str, command: do.UpdateEmail) -> _Denial | None:
    row = state.rows(EMAILS).get(command.email_id)
    owner = row.handled_by if row and not has_changed(row, command) else None
    what = f"e-mail {command.email_id} is handled by another agent"
    return _deny_unless_own(agent, owner, what) or _own_handling(state, agent, command)


_AGENT_CHECKS: Mapping[type[do.AnyCommand], Callable[[State, str, Any], _Denial | None]] = MappingProxyType(
    {
        do.SendMessage: _as_itself,
        do.AcknowledgeMessage: _as_itself,
        do.Heartbeat: _as_itself,
        do.StartOperation: _as_itself,
        do.ReserveTokens: _as_itself,
        do.RecordUsage: _as_itself,
        do.RegisterAgent: _own_name,
        do.RenewOperation: _own_operation,
        do.FinishOperation: _own_operation,
        do.SettleReservation: _own_reservation,
        do.ReleaseReservation: _own_reservation,
        do.CreateTask: _any_task,
        do.UpdateTask: _own_task,
        do.LogEmail: _own_handling,
        do.UpdateEmail: _own_email,
    }
)
"""The commands that agents may give, each with the check that it concerns only the agent itself."""
