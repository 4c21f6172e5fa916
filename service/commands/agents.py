"""Commands about agents."""

from __future__ import annotations

from eventstore.events import AgentStatus
from service.commands.base import Command
from service.values import Name, Priority, Url


class RegisterAgent(Command):
    """Register an agent, or replace its role, URL and priority."""

    name: Name
    role: Name
    url: Url | None = None
    """Base URL at which the agent is called; defaults to the service's `agents_url`."""
    priority: Priority = 0
    """When jobs are due at the same time, those of agents with a higher priority go first."""


class Heartbeat(Command):
    """Report that an agent is alive, and optionally its status."""

    agent: Name
    status: AgentStatus | None = None
    """Its status; `active` by default."""
