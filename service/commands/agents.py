"""What can be asked about agents."""

from __future__ import annotations

from eventstore.events import AgentStatus
from service.commands.base import Command
from service.values import Name, Priority, Url


class RegisterAgent(Command):
    """Enter an agent, or set its role, url and priority anew."""

    name: Name
    role: Name
    url: Url | None = None
    """Base URL where the agent is called; without it, the service's default."""
    priority: Priority = 0
    """Of jobs that are due at once, those of the agent with the higher one go first."""


class Heartbeat(Command):
    """Say that an agent lives, and optionally what it is at."""

    agent: Name
    status: AgentStatus | None = None
    """What it is at; without it `active`."""
