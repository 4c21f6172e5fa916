"""The first commands of a process that starts: the settings' policy, agents and jobs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from eventstore.events import JobDefinition
from projections.agents import AGENTS
from projections.jobs import JOBS
from service.commands import DefineJob, RegisterAgent, SetPolicy, StartOrchestrator, WithdrawJob
from service.database import StartFailed
from service.job_spec import EMAIL_AGENT, SEED_JOBS
from service.requests import Request
from service.writing.batch import new_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from projections.agents import AgentRow
    from projections.budgets import PolicyRow
    from projections.jobs import JobRow
    from service.commands import AnyCommand
    from service.requests import Outcome
    from service.settings import Settings
    from service.writing.writer import Writer

SERVICE_ACTOR = "system:service"

SEED_AGENTS = {"orchestrator": "Orchestrator", EMAIL_AGENT: "Email"}
"""Agents that the seed's jobs refer to, by name with their role; registered unless they already are."""

_log = logging.getLogger(__name__)


async def apply_settings(settings: Settings, writer: Writer) -> None:
    """Apply the settings' policy, agents and jobs, and start the orchestrator of a new squad.

    A value in the settings overrides one that was changed through the API; a log line says so. A warning
    names each job that they change or withdraw: this process may lack the squad's settings file.

    Raises:
        StartFailed: a job's agent is not registered.
    """
    correlation_id = new_id()

    async def do(command: AnyCommand) -> Outcome:
        while True:
            outcome = await writer.submit(Request(command, SERVICE_ACTOR, correlation_id))
            # After a long outage, a job has so many missed ticks that they are recorded in several steps.
            if outcome.refusal is None or outcome.refusal.code != "job_behind":
                return outcome

    policy = settings.policy()
    if writer.squad.has_policy:
        _log_changes(logging.INFO, "the policy", writer.squad.policy, policy, policy.model_fields_set)
    await do(policy)
    known = writer.squad.rows(AGENTS).get
    for agent in settings.registrations(known):
        if row := known(agent.name):
            _log_changes(logging.INFO, f"agent {agent.name}", row, agent, agent.model_fields_set)
        await do(agent)
    for name, role in SEED_AGENTS.items() if settings.seed_jobs else ():
        if known(name) is None:
            await do(RegisterAgent(name=name, role=role))
    await do(StartOrchestrator(only_if_new=True))
    specs = settings.job_specs(writer.squad.policy)
    scheduled = writer.squad.rows(JOBS).get
    for name, (source, spec) in specs.items():
        before = scheduled(name)
        outcome = await do(DefineJob(name=name, source=source, definition=spec.definition()))
        if outcome.refusal:
            raise StartFailed(f"jobs.{name}.agent is {spec.agent!r}: {outcome.refusal.detail}")
        if before and (after := scheduled(name)):
            fields = JobDefinition.__struct_fields__
            _log_changes(logging.WARNING, f"job {name}", before, after, fields)
    withdrawn = [job.name for job in writer.squad.all(JOBS) if job.source != "api"]
    if not settings.seed_jobs:
        # Include those that were removed already: if seed jobs are enabled again, all of them come back.
        withdrawn += [name for name in SEED_JOBS if scheduled(name) is None]
    for name in withdrawn:
        if name not in specs:
            before = scheduled(name)
            await do(WithdrawJob(name=name))
            if before and not scheduled(name):
                _log.warning(
                    "the settings withdraw job %s, last changed at position %d", name, before.position
                )


def _log_changes(
    level: int,
    what: str,
    before: PolicyRow | AgentRow | JobRow,
    after: SetPolicy | RegisterAgent | JobRow,
    fields: Iterable[str],
) -> None:
    """Log which of these fields the settings change, without the values, which a client may have sent."""
    changed = [name for name in fields if getattr(before, name) != getattr(after, name)]
    if changed:
        _log.log(
            level,
            "the settings change %s of %s, last changed at position %d",
            ", ".join(sorted(changed)),
            what,
            before.position,
        )
