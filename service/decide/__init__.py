"""Decisions: `decide(state, command, at) -> events and a reply, or a refusal`. Pure.

Nothing here reads a clock, a database or a random source; all of that is passed in. A decision is made on a
state that is folded to the log's last event, and its events are appended only if the log still ends there,
so what was checked here still holds when it is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from service import commands as do
from service.decide import (
    agents,
    budget,
    emails,
    jobs,
    keys,
    messages,
    operations,
    orchestrator,
    rules,
    runs,
    starting,
    subjects,
    tasks,
    ticks,
)
from service.decide.decision import Accepted, Decision, DecisionContext, Refused

if TYPE_CHECKING:
    from service.memory.state import State

__all__ = ["Accepted", "Decision", "DecisionContext", "Refused", "decide"]


def decide(state: State, command: do.AnyCommand, at: DecisionContext) -> Decision:
    """Decide one command on the state at the head of the log."""
    match command:
        case do.SendMessage():
            return messages.send(state, command, at)
        case do.RecordUsage():
            return budget.record(state, command, at)
        case do.ReserveTokens():
            return budget.reserve(state, command, at)
        case do.StartOperation():
            return operations.start(state, command, at)
        case do.SettleReservation():
            return budget.settle(state, command, at)
        case do.FinishOperation():
            return operations.finish(state, command, at)
        case do.RenewOperation():
            return operations.renew(state, command, at)
        case do.Heartbeat():
            return agents.heartbeat(state, command, at)
        case do.AcknowledgeMessage():
            return messages.acknowledge(state, command, at)
        case do.ReleaseReservation():
            return budget.release(state, command, at)
        case do.CreateTask():
            return tasks.create(state, command, at)
        case do.UpdateTask():
            return tasks.update(state, command, at)
        case do.LogEmail():
            return emails.log(state, command, at)
        case do.UpdateEmail():
            return emails.update(state, command, at)
        case do.ForgetSubject():
            return subjects.forget(state, command, at)
        case do.RegisterAgent():
            return agents.register(state, command, at)
        case do.SetBudget() | do.SetPolicy():
            return rules.set_rules(state, command, at)
        case do.ClaimTick():
            return ticks.claim_tick(state, command, at)
        case do.TakeUpRun():
            return runs.take_up(state, command, at)
        case do.RenewRun():
            return runs.renew(state, command, at)
        case do.EndAttempt():
            return runs.end_attempt(state, command, at)
        case do.RunJob():
            return starting.run_now(state, command, at)
        case do.DefineJob():
            return jobs.define(state, command, at)
        case do.RemoveJob() | do.WithdrawJob():
            return jobs.remove(state, command, at)
        case do.PauseJob():
            return jobs.pause(state, command, at)
        case do.ResumeJob():
            return jobs.resume(state, command, at)
        case do.CreateKey():
            return keys.create(state, command, at)
        case do.NoteKeyUse():
            return keys.note_use(state, command, at)
        case do.RevokeKey():
            return keys.revoke(state, command, at)
        case do.StartOrchestrator():
            return orchestrator.start(state, command, at)
        case do.StopOrchestrator():
            return orchestrator.stop(state, command, at)
        case do.PassTime():
            # Time-driven events are decided before every batch; this command only requests a batch.
            return Accepted([], {"position": state.head.position})
        case _:
            assert_never(command)
