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
    from service.memory.draft import Draft

__all__ = ["Accepted", "Decision", "DecisionContext", "Refused", "decide"]


def decide(draft: Draft, command: do.AnyCommand, at: DecisionContext) -> Decision:
    """Decide one command on the state at the head of the log."""
    match command:
        case do.SendMessage():
            return messages.send(draft, command, at)
        case do.RecordUsage():
            return budget.record(draft, command, at)
        case do.ReserveTokens():
            return budget.reserve(draft, command, at)
        case do.StartOperation():
            return operations.start(draft, command, at)
        case do.SettleReservation():
            return budget.settle(draft, command, at)
        case do.FinishOperation():
            return operations.finish(draft, command, at)
        case do.RenewOperation():
            return operations.renew(draft, command, at)
        case do.Heartbeat():
            return agents.heartbeat(draft, command, at)
        case do.AcknowledgeMessage():
            return messages.acknowledge(draft, command, at)
        case do.ReleaseReservation():
            return budget.release(draft, command, at)
        case do.CreateTask():
            return tasks.create(draft, command, at)
        case do.UpdateTask():
            return tasks.update(draft, command, at)
        case do.LogEmail():
            return emails.log(draft, command, at)
        case do.UpdateEmail():
            return emails.update(draft, command, at)
        case do.ForgetSubject():
            return subjects.forget(draft, command, at)
        case do.RegisterAgent():
            return agents.register(draft, command, at)
        case do.SetBudget() | do.SetPolicy():
            return rules.set_rules(draft, command, at)
        case do.ClaimTick():
            return ticks.claim_tick(draft, command, at)
        case do.TakeUpRun():
            return runs.take_up(draft, command, at)
        case do.RenewRun():
            return runs.renew(draft, command, at)
        case do.EndAttempt():
            return runs.end_attempt(draft, command, at)
        case do.RunJob():
            return starting.run_now(draft, command, at)
        case do.DefineJob():
            return jobs.define(draft, command, at)
        case do.RemoveJob() | do.WithdrawJob():
            return jobs.remove(draft, command, at)
        case do.PauseJob():
            return jobs.pause(draft, command, at)
        case do.ResumeJob():
            return jobs.resume(draft, command, at)
        case do.CreateKey():
            return keys.create(draft, command, at)
        case do.NoteKeyUse():
            return keys.note_use(draft, command, at)
        case do.RevokeKey():
            return keys.revoke(draft, command, at)
        case do.StartOrchestrator():
            return orchestrator.start(draft, command, at)
        case do.StopOrchestrator():
            return orchestrator.stop(draft, command, at)
        case do.PassTime():
            # Time-driven events are decided before every batch; this command only requests a batch.
            return Accepted([], {"position": draft.head.position})
        case _:
            assert_never(command)
