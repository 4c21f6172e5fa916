"""What can be asked about agents."""

from __future__ import annotations

from eventstore.events import AgentStatus
from service.commands.base import Command
from service.values import BaseUrl, Name, Priority


class RegisterAgent(Command):
    """Enter an agent, or set its role, url and priority anew."""

    name: Name
    role: Name
    url: BaseUrl | None = None
    """Where the agent is called: paths are appended to it. Without it, the service's default."""
    priority: Priority = 0


class Heartbeat(Command):
    """Say that an agent lives, and optionally what it is at."""

    agent: Name
    status: AgentStatus | None = None
